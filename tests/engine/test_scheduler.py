"""The scheduler against a memory of tokens: every step finds in its blocks what it computed before."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.engine.job import Discard, Job, Keep, Load, Phase, Restart, Resume, Save
from fourfold.engine.limits import Limits
from fourfold.engine.radix import TokenIds
from fourfold.engine.scheduler import OVERTAKES, PATIENCE, Scheduler

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


ARRIVAL = st.tuples(
    st.text(alphabet="ab", min_size=1, max_size=30),
    st.integers(0, 17),
    st.integers(0, 2),
    st.integers(0, 4),  # steps until the next
    st.integers(0, 40) | st.none(),  # cancelled at this step
)


@settings(max_examples=100, deadline=None)
@given(
    arrivals=st.lists(ARRIVAL, min_size=1, max_size=14),
    running=st.integers(1, 5),
    blocks=st.integers(12, 30),
    snapshots=st.integers(0, 6),
    saved=st.sampled_from([0, 5, 100]),
    delay=st.sampled_from([None, 0, 2]),
    drafting=st.none() | st.integers(0, 99).map(random.Random),
)
def test_every_request_ends_and_nothing_is_lost_or_used_twice(
    arrivals, running, blocks, snapshots, saved, delay, drafting
):
    world = World(
        Scheduler(
            limits(
                running=running,
                blocks=blocks,
                snapshots=snapshots,
                saved_bytes=saved,
                step_tokens=2 * running + 3,
            )
        ),
        delay=delay,
        drafting=drafting,
    )
    cancels: list[tuple[int, Job]] = []
    for prompt, answer, priority, pause, cancelled in arrivals:
        one = world.submit(job(prompt, priority), answer)
        if cancelled is not None:
            cancels.append((world.steps + cancelled, one))
        for _ in range(pause):
            world.step()
            for at, other in cancels:
                if at == world.steps:
                    world.cancel(other)
    world.finish()


def test_decodes_come_first_and_a_short_prompt_passes_a_long_one():
    world = World(Scheduler(limits(blocks=100, snapshots=0)))
    long = world.submit(job("a" * 200), 3)
    assert world.step() == {long: 12}
    talk = world.submit(job("b" * 9), 5)
    assert world.step() == {long: 3, talk: 9}
    assert world.step() == {long: 11, talk: 1}


def test_the_longer_prompt_never_stands_still():
    world = World(Scheduler(limits(blocks=200, running=4, snapshots=0)))
    long = world.submit(job("a" * 200), 0)
    for _ in range(10):
        world.submit(job("b" * 40), 0)
        assert world.step()[long] >= (12 - 3) // 2 // 4
    world.finish()


def test_a_request_waits_for_the_beginning_that_another_computes():
    world = World(Scheduler(limits(blocks=100, snapshot_every=1000)))
    first = world.submit(job("a" * 40 + "b"), 0)
    second = world.submit(job("a" * 40 + "c"), 0)
    assert world.step() == {first: 12}
    world.finish()
    assert second.cached == 40
    assert world.scheduler.counters.computed_tokens == 42


def test_a_place_where_others_branched_off_is_remembered():
    world = World(Scheduler(limits(blocks=100, snapshot_every=1000)))
    cached = []
    for end in ("bbbb", "cccc", "dddd"):
        one = world.submit(job("a" * 18 + end), 0)
        while one.phase is not Phase.ENDED:
            world.step()
        assert one.phase is Phase.ENDED
        cached.append(one.cached)
    assert cached == [0, 0, 18]


def test_higher_priority_takes_a_place_and_the_other_resumes():
    world = World(Scheduler(limits(running=1, snapshots=0, step_tokens=30)))
    low = world.submit(job("a" * 10), 10)
    world.step()
    high = world.submit(job("b" * 10, priority=1), 2)
    assert set(world.step()) == {high}
    assert low.phase is Phase.SAVED
    world.finish()
    assert world.scheduler.counters.computed_tokens == 10 + 10 + 10 + 2
    assert world.scheduler.counters.dropped_tokens == 0


def test_without_room_for_its_state_a_preempted_request_is_computed_again():
    world = World(Scheduler(limits(running=1, snapshots=0, step_tokens=30, saved_bytes=0)))
    low = world.submit(job("a" * 10), 10)
    world.step()
    world.submit(job("b" * 10, priority=1), 2)
    world.step()
    assert low.phase is Phase.WAITING
    world.finish()
    assert world.scheduler.counters.dropped_tokens == 10


def test_a_low_priority_is_served_in_the_end():
    """A stream of more important requests keeps the only slot busy for ever."""
    world = World(Scheduler(limits(running=1, snapshots=0, step_tokens=30)))
    low = world.submit(job("a" * 10), 3)
    while low.phase is not Phase.ENDED:
        if len(world.left) < 3:
            world.submit(job("b" * 5, priority=2), 1)
        world.step()
        assert world.steps < 3 * PATIENCE + 30


def test_small_requests_pass_a_large_one_so_often_and_no_more():
    world = World(Scheduler(limits(running=4, blocks=12, snapshots=0)))
    holder = world.submit(job("x" * 20), 16)
    world.step()
    large = world.submit(job("a" * 36), 2)
    begun = 0
    while large.phase is Phase.WAITING:
        small = world.submit(job("b"), 0)
        world.step()
        begun += small.phase is not Phase.WAITING
    assert 0 < begun <= OVERTAKES
    assert holder.phase is Phase.ENDED
    world.finish()


def test_drafts_take_what_is_left_of_the_step_and_of_the_last_block():
    world = World(Scheduler(limits(running=3, blocks=30, snapshots=0)))
    talks = [world.submit(job("ab"), 50) for _ in range(2)]
    world.step()
    for one in talks:
        one.drafts = (99,) * 9
    shares = world.scheduler.plan()
    assert [len(share.drafts) for share in shares] == [1, 1]  # two tokens and the next, in blocks of four
    assert all(not one.drafts for one in talks)
    assert world.scheduler.pool.free == 28


def test_prompts_come_before_drafts():
    world = World(Scheduler(limits(blocks=30, snapshots=0)))
    talk = world.submit(job("a"), 50)
    world.step()
    world.submit(job("b" * 30), 0)
    talk.drafts = (99, 99)
    assert [(share.new, share.drafts) for share in world.scheduler.plan()] == [(1, ()), (11, ())]


def test_fewer_steps_and_the_same_tokens_with_drafts():
    ends = []
    for drafting in (None, random.Random(2)):
        world = World(Scheduler(limits(blocks=30)), drafting=drafting)
        one = world.submit(job("abba" * 3), 40)
        world.finish()
        ends.append((one.tokens.ids, world.steps))
    assert ends[0][0] == ends[1][0]
    assert ends[1][1] < ends[0][1]
    counters = world.scheduler.counters
    assert counters.computed_tokens == 12 + 40
    assert 0 < counters.accepted < counters.drafted
    assert counters.draft_length == counters.drafted / counters.verified


@pytest.mark.parametrize("keep", [True, False])
def test_ending_a_request_in_every_phase_frees_all(keep):
    world = World(Scheduler(limits(running=2, snapshots=0)))
    jobs = [world.submit(job("a" * 20, priority), 4) for priority in (0, 0, 1, 0)]
    world.step()
    world.step()
    phases = {one.phase for one in jobs}
    assert phases == {Phase.RUNNING, Phase.WAITING} or Phase.SAVED in phases
    for one in jobs:
        world.scheduler.end(one, keep=keep)
        world.act()
    assert world.scheduler.pool.free == world.scheduler.pool.count
    assert world.scheduler.saved_bytes == 0


def test_what_is_longer_on_disk_than_in_memory_is_read_once_for_all_who_begin_with_it():
    world = World(Scheduler(limits(blocks=100, snapshot_every=1000, saved_bytes=100)), delay=2)
    world.disk.add(tuple(map(ord, "a" * 40)))
    first, second = (world.submit(job("a" * 40 + end), 2) for end in "bc")
    assert world.step() == world.step() == {}
    assert (first.phase, second.phase) == (Phase.LOADING, Phase.WAITING)
    world.finish()
    assert first.cached == second.cached == 40
    assert world.scheduler.counters.stored_tokens == 40


def test_without_room_for_a_state_from_disk_its_tokens_are_computed():
    """Room for a slot and seven blocks: the longer state does not come, the shorter one does."""
    world = World(Scheduler(limits(blocks=100, snapshots=0, saved_bytes=8)), delay=0)
    world.disk |= {tuple(map(ord, "a" * 40)), tuple(map(ord, "a" * 28))}
    one = world.submit(job("a" * 41), 0)
    world.finish()
    assert one.cached == 28


def test_a_request_that_is_given_up_while_it_is_read_leaves_nothing():
    world = World(Scheduler(limits(saved_bytes=100)), delay=5)
    world.disk.add(tuple(map(ord, "a" * 20)))
    one = world.submit(job("a" * 21), 0)
    world.step()
    assert one in world.loading
    world.cancel(one)
    world.act()
    world.scheduler.loaded(one, 20)
    world.finish()
