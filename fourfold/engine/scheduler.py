"""Who computes what in the next step, and in which memory.  Bookkeeping only: no tensor is touched here.

Policy, in the order of a step:

1. A request that was started keeps its blocks.  When one needs another block and none is free, the cache of
   finished requests gives way, least recently used first; then the request of lowest rank is preempted: its
   state is put aside and comes back later as it was.  Where there is no room to put it, its tokens are
   computed again, which gives the same bits.
2. Rank is priority, one step higher for every `PATIENCE` steps of waiting; then the earlier arrival.  Waiting
   requests start in this order if their known tokens fit.  One that does not fit lets `OVERTAKES` others
   past, then nobody.  One of higher priority than a running request's rank may take that one's place.
3. A request that begins like one whose prompt is just being computed waits for the common part; one whose
   beginning is on disk, and longer there than in memory, waits until it is read.
4. Every request that has one token to compute gets it.  Half of what is left of the step's tokens is divided
   evenly among the prompts, the other half goes by rank and then to the prompt with the least left: short
   prompts pass long ones, and no prompt stands still.
5. Drafts are verified with what is then left of the step's tokens, and in blocks that the request holds
   anyway: no guess makes anybody wait or takes memory from anybody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from fourfold.engine.blocks import BlockPool
from fourfold.engine.job import SHORT, Action, Discard, Job, Keep, Load, Phase, Restart, Resume, Save, Share
from fourfold.engine.limits import Counters, Limits
from fourfold.engine.radix import Match, PrefixTree, TokenIds

PATIENCE = 64
OVERTAKES = 16


class Scheduler:
    """Jobs come by `submit`, go by `end`, and between them take part in steps.

    A step: `plan`, then the actions in `actions`, then the model, then `advance`.  A step that fails may be
    planned again; nothing has advanced.

    stored: how many of the first tokens of a sequence, up to a limit, can be had from disk.
    """

    def __init__(self, limits: Limits, stored: Callable[[TokenIds, int], int] | None = None) -> None:
        self.limits = limits
        self.stored = stored
        self.pool = BlockPool(limits.blocks)
        self.tree = PrefixTree(self.pool, limits.block_tokens, limits.snapshots)
        self.waiting: list[Job] = []
        """Those in phases LOADING and SAVED, too."""
        self.running: list[Job] = []
        self.actions: deque[Action] = deque()
        """To be done in this order before the step's tokens are computed."""
        self.saved_bytes = 0
        self.counters = Counters()
        self._slots = list(range(limits.running - 1, -1, -1))
        self._arrivals = 0

    @property
    def most_tokens(self) -> int:
        """The longest sequence that can be computed at all."""
        return self.limits.blocks * self.limits.block_tokens

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def submit(self, job: Job) -> None:
        """It takes part from the next step on."""
        job.number = self._arrivals
        self._arrivals += 1
        self.waiting.append(job)

    def plan(self) -> list[Share]:
        """The next step."""
        for job in self.waiting:
            job.waited += 1
        self._grow()
        self._admit()
        return self._divide()

    def advance(self, shares: Sequence[Share], accepted: Mapping[Job, int] | None = None) -> list[Keep]:
        """The tokens of a step are computed.  Returns the states that are to be kept of it.

        accepted: drafts of a job that were right.  They are among its known tokens by now.
        """
        self.counters.steps += 1
        kept: dict[int, Keep] = {}
        for share in shares:
            job, right = share.job, (accepted or {}).get(share.job, 0)
            before, job.computed = job.computed, job.computed + share.new + right
            self.counters.computed_tokens += share.new + right
            self.counters.verified += bool(share.drafts)
            self.counters.drafted += len(share.drafts)
            self.counters.accepted += right
            for position in self._boundaries(job, before):
                # Where snapshots are few, a later one may already have the place of an earlier one.
                kept |= {keep.snapshot_slot: keep for keep in self._keep(job, position)}
        return list(kept.values())

    def end(self, job: Job, *, keep: bool) -> list[Keep]:
        """It is finished or given up; all it holds is free again.  keep: its state is worth a snapshot.

        What is returned must be copied before the next step.
        """
        kept = self._keep(job, job.computed) if keep and job.phase is Phase.RUNNING else []
        if job.phase is Phase.RUNNING:
            self._release(job)
        elif job.phase is not Phase.ENDED:
            self.waiting.remove(job)
            self._unsave(job)
        job.phase = Phase.ENDED
        return kept

    def loaded(self, job: Job, position: int) -> None:
        """The state after `position` tokens has come from disk; 0: it could not be read."""
        if job.phase is not Phase.LOADING:
            return
        if position == 0:
            job.phase, job.computed = Phase.WAITING, 0
            self.saved_bytes -= job.saved_bytes
            job.saved_bytes = 0
            return
        job.phase, job.loaded = Phase.SAVED, True
        if job.cached is None:
            job.cached = position
            self.counters.cached_tokens += position
            self.counters.stored_tokens += position

    def resumed(self, job: Job) -> list[Keep]:
        """What was put aside is in the job's slot and blocks.  Returns what others may restart from."""
        loaded, job.loaded = job.loaded, False
        return self._keep(job, job.computed) if loaded else []

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold the entries of so many tokens."""
        return -(-tokens // self.limits.block_tokens)

    def _boundaries(self, job: Job, before: int) -> list[int]:
        """Positions passed by the last step that are worth a snapshot."""
        if job.watched:
            return []
        every = self.limits.snapshot_every
        regular = range((before // every + 1) * every, job.computed + 1, every)
        return sorted({*regular, *(b for b in job.boundaries if before < b <= job.computed)})

    def _keep(self, job: Job, position: int) -> list[Keep]:
        snapshot, twins = self.tree.add(job.tokens, position, job.blocks)
        for i, block in twins.items():
            self.pool.share(block)
            self.pool.drop(job.blocks[i])
            job.blocks[i] = block
        if snapshot is None:
            return []
        return [Keep(job, position, snapshot.slot, tuple(job.blocks[: self.blocks_for(position)]))]

    def _grow(self) -> None:
        """Blocks for the tokens that came since the last step."""
        for job in sorted(self.running, key=_rank):
            while job.phase is Phase.RUNNING and len(job.blocks) < self.blocks_for(len(job.tokens)):
                if self._make_free(1):
                    job.blocks.append(self.pool.take())
                else:
                    self._preempt(max(self.running, key=_rank))

    def _make_free(self, count: int) -> bool:
        """Evict until so many blocks are free; False, and nothing done, where that cannot be."""
        if self.pool.free + self.pool.evictable < count:
            return False
        while self.pool.free < count:
            self.tree.evict()
        return True

    def _admit(self) -> None:
        passed: list[Job] = []
        for job in sorted(self.waiting, key=_rank):
            if job.phase is Phase.LOADING:
                continue
            if not self._slots and all(_effective(other) >= job.priority for other in self.running):
                continue
            match = self.tree.find(job.tokens, _reusable(job))
            if job.phase is Phase.WAITING and (
                self._is_being_computed(job, match.position) or self._load(job, match.position)
            ):
                continue
            if self._start(job, match):
                for other in passed:
                    other.overtaken += 1
            elif job.overtaken >= OVERTAKES or len(passed) == OVERTAKES:
                return
            else:
                passed.append(job)

    def _is_being_computed(self, job: Job, cached: int) -> bool:
        """Whether a running request will soon leave a snapshot that saves this one something.

        One that it would not leave anyway must save a block.
        """
        if not self.limits.snapshots or job.scored:
            return False
        for other in self.running:
            if other.pending <= 1 or other.watched:
                continue
            common = min(job.tokens.common(other.tokens), len(job.tokens) - 1)
            saves = SHORT if common in other.boundaries else self.limits.block_tokens
            if common - cached >= saves and other.computed < common:
                other.boundaries.add(common)
                return True
        return False

    def _load(self, job: Job, cached: int) -> bool:
        """Have its beginning read from disk if that is longer than what memory has of it.

        It comes to where the states of preempted requests are put aside, and takes of their room.
        """
        if self.stored is None:
            return False
        limits = self.limits
        room = limits.saved_bytes - self.saved_bytes - limits.slot_bytes
        most = _reusable(job)
        if limits.block_bytes:
            most = min(most, room // limits.block_bytes * limits.block_tokens)
        if room < 0 or most < cached + SHORT:
            return False
        position = self.stored(job.tokens, most)
        if position < cached + SHORT:
            return False
        for other in (*self.waiting, *self.running):
            begun = other.phase is Phase.LOADING or other.loaded
            if begun and other.computed == position and other.tokens.common(job.tokens) >= position:
                return True  # and then it is in memory
        job.phase, job.computed = Phase.LOADING, position
        job.saved_bytes = limits.slot_bytes + self.blocks_for(position) * limits.block_bytes
        self.saved_bytes += job.saved_bytes
        self.actions.append(Load(job, position))
        return True

    def _start(self, job: Job, match: Match) -> bool:
        """Give it a slot and blocks for all its tokens; False where there are none."""
        fresh = job.phase is Phase.WAITING
        shared = match.blocks if fresh else ()
        for block in shared:
            self.pool.share(block)
        if match.snapshot is not None:
            self.tree.touch(match.snapshot)
        needed = self.blocks_for(len(job.tokens)) - len(shared)
        if not self._make_place(job, needed):
            for block in shared:
                self.pool.drop(block)
            return False
        self.waiting.remove(job)
        self.running.append(job)
        job.slot = self._slots.pop()
        job.blocks = [*shared, *(self.pool.take() for _ in range(needed))]
        job.phase = Phase.RUNNING
        if fresh:
            self._restart(job, match)
        else:
            blocks = tuple(job.blocks[: self.blocks_for(job.computed)])
            self.actions.append(Resume(job, job.slot, blocks))
            self.saved_bytes -= job.saved_bytes
            job.saved_bytes = 0
        return True

    def _restart(self, job: Job, match: Match) -> None:
        """Begin at the longest snapshot, and remember where others may branch off."""
        job.computed = match.position
        if job.cached is None:
            job.cached = match.position
            self.counters.cached_tokens += match.position
        shared = self.tree.shared(job.tokens)
        if match.position + SHORT <= shared < len(job.tokens):
            job.boundaries.add(shared)
        snapshot = match.snapshot
        if snapshot is not None:
            copied = None if snapshot.block is None else (snapshot.block, job.blocks[len(match.blocks)])
            self.actions.append(Restart(job, job.slot, snapshot.slot, copied))

    def _make_place(self, job: Job, needed: int) -> bool:
        """A free slot and `needed` free blocks, if need be at the cost of requests of lower rank.

        A block for each running request stays aside, or the next step would preempt one.
        """
        lower = sorted((r for r in self.running if _effective(r) < job.priority), key=_rank)
        most = self.pool.free + self.pool.evictable + self.pool.held_by(other.blocks for other in lower)
        if len(self._slots) + len(lower) == 0 or most < needed + len(self.running) - len(lower):
            return False
        while lower and not (self._slots and self._has_room(needed)):
            self._preempt(lower.pop())
        return bool(self._slots) and self._has_room(needed) and self._make_free(needed)

    def _has_room(self, needed: int) -> bool:
        return self.pool.free + self.pool.evictable >= needed + len(self.running)

    def _preempt(self, job: Job) -> None:
        """Take its memory away, and put its state aside if there is room."""
        self.counters.preempted += 1
        blocks = tuple(job.blocks[: self.blocks_for(job.computed)])
        size = self.limits.slot_bytes + len(blocks) * self.limits.block_bytes
        saved = job.computed > 0 and self.saved_bytes + size <= self.limits.saved_bytes
        if saved:
            self.actions.append(Save(job, job.slot, blocks))
            self.saved_bytes += size
            job.saved_bytes = size
        self._release(job)
        if saved:
            job.phase = Phase.SAVED
            self.waiting.append(job)
        else:
            self._wait_anew(job)

    def _wait_anew(self, job: Job) -> None:
        self.counters.dropped_tokens += job.computed
        job.computed = 0
        job.phase = Phase.WAITING
        self.waiting.append(job)

    def _release(self, job: Job) -> None:
        self.running.remove(job)
        self._slots.append(job.slot)
        for block in job.blocks:
            self.pool.drop(block)
        job.slot, job.blocks, job.drafts = -1, [], ()

    def _unsave(self, job: Job) -> None:
        if job.saved_bytes:
            self.actions.append(Discard(job))
            self.saved_bytes -= job.saved_bytes
            job.saved_bytes = 0

    def _divide(self) -> list[Share]:
        """The step's tokens among the running requests."""
        shares = {job: 1 for job in self.running if job.pending == 1}
        left = self.limits.step_tokens - len(shares)
        prompts = sorted((j for j in self.running if j.pending > 1), key=lambda j: j.pending)
        even = left // 2
        for i, job in enumerate(prompts):
            # What shorter prompts leave of their part goes to the longer ones.
            shares[job] = min(job.pending, even // (len(prompts) - i))
            even -= shares[job]
        left -= sum(shares[job] for job in prompts)
        for job in sorted(prompts, key=lambda j: (-_effective(j), j.pending)):
            more = min(job.pending - shares[job], left)
            shares[job] += more
            left -= more
        divided = []
        for job, new in shares.items():
            share = Share(job, new, self._usable(job, left))
            left -= len(share.drafts)
            divided.append(share)
        return divided

    def _usable(self, job: Job, left: int) -> tuple[int, ...]:
        """The drafts that fit into what is left of the step and into the job's last block."""
        room = len(job.blocks) * self.limits.block_tokens - len(job.tokens)
        drafts, job.drafts = job.drafts[: min(left, room)], ()
        return drafts


def _reusable(job: Job) -> int:
    """How many of its first tokens need not be computed, wherever their state comes from."""
    return 0 if job.scored else len(job.tokens) - 1


def _effective(job: Job) -> int:
    return job.priority + job.waited // PATIENCE


def _rank(job: Job) -> tuple[int, int]:
    """Orders jobs, the first to be served first."""
    return -_effective(job), job.number
