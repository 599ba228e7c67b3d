"""A memory of tokens in the place of a model, which finds every mistake of a scheduler's books."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from fourfold.engine.job import Discard, Job, Keep, Load, Restart, Resume, Save
from fourfold.engine.limits import Limits
from fourfold.engine.radix import TokenIds
from fourfold.engine.scheduler import Scheduler

SIZE = 4


def limits(**changed: int) -> Limits:
    values = {
        "running": 4,
        "step_tokens": 12,
        "blocks": 12,
        "block_tokens": SIZE,
        "snapshots": 4,
        "snapshot_every": 8,
        "saved_bytes": 30,
        "slot_bytes": 1,
        "block_bytes": 1,
    }
    return Limits(**{**values, **changed})


def job(prompt: str, priority: int = 0) -> Job:
    return Job(TokenIds(map(ord, prompt), SIZE), priority=priority, boundaries={len(prompt) - 1})


def following(ids: list[int]) -> int:
    """What the model says after these."""
    return ord("ab"[sum(ids) % 2])


@dataclass
class World:
    """Plays the model: a slot holds the tokens it has seen, a block the tokens written to it.

    delay: steps that a disk takes, which then has every state that was ever kept; each third is damaged.
    """

    scheduler: Scheduler
    left: dict[Job, int] = field(default_factory=dict)
    """Tokens that each request will still generate."""
    slots: dict[int, tuple[int, ...]] = field(default_factory=dict)
    snapshots: dict[int, tuple[int, ...]] = field(default_factory=dict)
    blocks: dict[int, dict[int, int]] = field(default_factory=dict)
    saved: dict[Job, tuple[tuple[int, ...], list[dict[int, int]]]] = field(default_factory=dict)
    steps: int = 0
    delay: int | None = None
    disk: set[tuple[int, ...]] = field(default_factory=set)
    loading: dict[Job, int] = field(default_factory=dict)
    drafting: random.Random | None = None
    """Draws the drafts: some tokens that are right, then some that are not."""

    def __post_init__(self) -> None:
        if self.delay is not None:
            self.scheduler.stored = self.stored

    def stored(self, tokens: TokenIds, limit: int) -> int:
        return max((n for n in range(limit + 1) if tuple(tokens.ids[:n]) in self.disk), default=0)

    def submit(self, new: Job, answer: int) -> Job:
        self.scheduler.submit(new)
        self.left[new] = answer
        return new

    def cancel(self, old: Job) -> None:
        if self.left.pop(old, None) is not None:
            self.scheduler.end(old, keep=False)
            self.check_accounts()

    def arrive(self) -> None:
        for one, due in list(self.loading.items()):
            if self.steps < due:
                continue
            del self.loading[one]
            ids = one.tokens.ids[: one.computed]
            if len(ids) % 3 == 0:
                self.disk.remove(tuple(ids))
                self.scheduler.loaded(one, 0)
                continue
            pieces = [ids[i : i + SIZE] for i in range(0, len(ids), SIZE)]
            self.saved[one] = tuple(ids), [dict(enumerate(piece)) for piece in pieces]
            self.scheduler.loaded(one, len(ids))

    def step(self) -> dict[Job, int]:
        self.arrive()
        planned = self.scheduler.plan()
        shares = {share.job: share.new for share in planned}
        self.act()
        self.check_accounts()
        assert sum(share.length for share in planned) <= self.scheduler.limits.step_tokens
        assert set(shares) == set(self.scheduler.running)
        assert all(1 <= new <= one.pending for one, new in shares.items())
        assert all(share.new == share.job.pending == 1 for share in planned if share.drafts)
        accepted = {}
        for share in planned:
            self.compute(share.job, share.new, share.drafts)
            if share.new == share.job.pending:
                accepted[share.job] = self.sample(share.job, share.drafts)
        for share in planned:
            one = share.job
            self.slots[one.slot] = tuple(one.tokens.ids[: one.computed + share.new + accepted.get(one, 0)])
        self.keep(self.scheduler.advance(planned, accepted))
        for one in accepted:
            if self.left[one] < 0:
                self.keep(self.scheduler.end(one, keep=True))
                del self.left[one]
        self.steps += 1
        return shares

    def compute(self, one: Job, new: int, drafts: tuple[int, ...]) -> None:
        ids = [*one.tokens.ids[: one.computed + new], *drafts]
        assert self.slots.get(one.slot, ())[: one.computed] == tuple(ids[: one.computed])
        for position in range(one.computed):
            assert self.blocks[one.blocks[position // SIZE]][position % SIZE] == ids[position]
        for position in range(one.computed, len(ids)):
            self.blocks.setdefault(one.blocks[position // SIZE], {})[position % SIZE] = ids[position]

    def sample(self, one: Job, drafts: tuple[int, ...]) -> int:
        """The next tokens, as far as the draft is right.  Returns how many of it are."""
        ids, accepted = one.tokens.ids, 0
        for draft in (*drafts, None):
            self.left[one] -= 1
            if self.left[one] < 0:
                return accepted
            ids.append(following(ids))
            if ids[-1] != draft:
                break
            accepted += 1
        if self.drafting is not None:
            right = list(ids)
            for _ in range(self.drafting.randrange(6)):
                right.append(following(right))
            one.drafts = (*right[len(ids) :], *[ord("c")] * self.drafting.randrange(4))
        return accepted

    def keep(self, kept: list[Keep]) -> None:
        assert len({k.snapshot_slot for k in kept}) == len(kept)
        for k in kept:
            self.snapshots[k.snapshot_slot] = tuple(k.job.tokens.ids[: k.position])
            self.disk.add(self.snapshots[k.snapshot_slot])
            for position in range(k.position):
                block = self.blocks[k.blocks[position // SIZE]]
                assert block[position % SIZE] == k.job.tokens.ids[position]

    def act(self) -> None:
        while self.scheduler.actions:
            action = self.scheduler.actions.popleft()
            match action:
                case Restart(job=one, slot=slot, snapshot_slot=source, blocks=pair):
                    assert self.snapshots[source] == tuple(one.tokens.ids[: one.computed])
                    self.slots[slot] = self.snapshots[source]
                    if pair is not None:
                        self.blocks[pair[1]] = dict(self.blocks[pair[0]])
                case Save(job=one, slot=slot, blocks=blocks):
                    self.saved[one] = self.slots[slot], [dict(self.blocks[b]) for b in blocks]
                case Resume(job=one, slot=slot, blocks=blocks):
                    self.slots[slot], contents = self.saved.pop(one)
                    self.blocks |= zip(blocks, contents, strict=True)
                    self.keep(self.scheduler.resumed(one))
                case Discard(job=one):
                    del (self.saved if one in self.saved else self.loading)[one]
                case Load(job=one):
                    assert self.delay is not None
                    self.loading[one] = self.steps + self.delay

    def check_accounts(self) -> None:
        """Nothing leaked, nothing given out twice."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        users = Counter(block for one in scheduler.running for block in one.blocks)
        assert len({one.slot for one in scheduler.running}) == len(scheduler.running)
        assert len(scheduler._slots) + len(scheduler.running) == scheduler.limits.running
        assert pool.free + pool.evictable + len(users) == pool.count
        assert [users[b] for b in range(pool.count)] == pool._users
        for one in scheduler.running:
            writable = one.blocks[one.computed // SIZE :]
            assert all(users[block] == 1 for block in writable)
        assert scheduler.saved_bytes == sum(one.saved_bytes for one in scheduler.waiting)
        assert scheduler.saved_bytes <= scheduler.limits.saved_bytes

    def finish(self, most: int = 2000) -> None:
        while self.scheduler.busy:
            self.step()
            assert self.steps < most
        assert not self.left
        assert not self.saved
        assert not self.loading
        assert self.scheduler.pool.free + self.scheduler.pool.evictable == self.scheduler.pool.count
        while len(self.scheduler.tree):
            self.scheduler.tree.evict()
        assert self.scheduler.pool.free == self.scheduler.pool.count
