"""The scheduler against a memory of tokens: every step finds in its blocks what it computed before."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.engine.job import Job, Phase
from fourfold.engine.scheduler import OVERTAKES, PATIENCE, Scheduler
from tests.engine.world import World, job, limits

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
