"""Slots, wishes and evictions, with reads that end when the test says."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from fourfold.errors import CheckpointError
from fourfold.tiers.cache import ExpertCache
from fourfold.tiers.reader import aligned_bytes


class Disk:
    """Reads wait for `gate`; `broken` experts fail; `order` is that in which they were begun."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.broken: set[int] = set()
        self.order: list[int] = []
        self.pieces: list[tuple[int, int]] = []
        self.begun = threading.Semaphore(0)

    def fill(self, expert, piece, slot, buffer):
        self.order.append(expert)
        self.pieces.append((expert, piece))
        self.begun.release()
        assert self.gate.wait(10)
        if expert in self.broken:
            raise CheckpointError(f"expert {expert} is broken")


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def cache(disk):
    """4 slots for 3 layers of 4 experts, one reader."""
    cache = ExpertCache(4, 3, 4, 1, [1], lambda: aligned_bytes(1), disk.fill)
    yield cache
    disk.gate.set()
    cache.queue.close()


def run(cache, experts, tokens=1):
    """A layer asks for `experts` and uses them one by one; returns hits, read ahead, misses."""
    layer = experts[0] // cache.per_layer
    with cache.changed:
        counts = np.zeros(cache.per_layer, dtype=np.int64)
        counts[np.array(experts) % cache.per_layer] = tokens
        cache.policy.used(layer, counts, tokens)
        cache.forget_wishes(range((layer + 1) * cache.per_layer))
        found = cache.claim(experts)
        while experts:
            cache.demand(experts, layer, tokens)
            while not cache.wait(experts[0]):
                cache.demand(experts, layer, tokens)
            cache.forget_wishes(experts[:1])
            experts = experts[1:]
    return found


def ahead(cache, experts, layer, tokens=1):
    with cache.changed:
        cache.read_ahead(experts, layer, tokens)


def consistent(cache):
    """Experts and slots name each other."""
    held = [e for e in range(len(cache.slot)) if cache.slot[e] >= 0]
    assert sorted(cache._holds[cache._holds >= 0].tolist()) == held
    return all(cache._holds[cache.slot[e]] == e for e in held)


def test_hits_misses_and_evictions(cache, disk):
    assert run(cache, [0, 1]) == (0, 0, 2)
    assert run(cache, [0, 1]) == (2, 0, 0)
    assert run(cache, [4, 6]) == (0, 0, 2)
    assert run(cache, [8]) == (0, 0, 1)
    assert disk.order == [0, 1, 4, 6, 8] and cache.queue.bytes_read == 5
    assert consistent(cache)


def test_more_experts_than_slots(cache, disk):
    run(cache, [2, 3])
    assert run(cache, [4, 5, 6, 7]) == (0, 0, 4)
    assert run(cache, [4, 5, 6, 7]) == (4, 0, 0)
    small = ExpertCache(2, 1, 4, 2, [1], lambda: aligned_bytes(1), disk.fill)
    for _ in range(3):
        run(small, [0, 1, 2, 3], tokens=9)
    assert consistent(small)
    small.queue.close()


def test_what_is_cached_and_wanted_gives_way_only_to_what_comes_before_it(disk):
    small = ExpertCache(2, 1, 4, 1, [1], lambda: aligned_bytes(1), disk.fill)
    run(small, [2, 3])
    assert run(small, [0, 2, 3]) == (2, 0, 1)
    assert disk.order == [2, 3, 0, 3]  # 3 went for 0, 2 was used, then 3 came back
    small.queue.close()


def test_reads_ahead_count_when_used_and_when_not(cache, disk):
    run(cache, [0, 1])
    ahead(cache, [4, 5], 1)
    with cache.changed:
        assert cache.changed.wait_for(lambda: cache.ready(4) and cache.ready(5), 10)
    assert run(cache, [4]) == (0, 1, 0)
    assert run(cache, [4]) == (1, 0, 0)
    run(cache, [8, 9, 10, 11])
    assert cache.wasted >= 1
    assert consistent(cache)


def test_a_wrong_guess_that_has_not_begun_is_dropped(cache, disk):
    disk.gate.clear()
    ahead(cache, [0, 1], 0)  # one reader: 0 begins, 1 waits
    assert disk.begun.acquire(timeout=10)
    with cache.changed:
        cache.claim([2])
        cache.forget_wishes([1])
        assert cache.slot[1] < 0 and consistent(cache)
    disk.gate.set()
    run(cache, [2])
    assert 1 not in disk.order


def test_what_is_waited_for_comes_before_what_may_be_needed(cache, disk):
    disk.gate.clear()
    run_first = threading.Thread(target=run, args=(cache, [0]))
    run_first.start()
    assert disk.begun.acquire(timeout=10)
    with cache.changed:
        cache.read_ahead([9], 1, 1)
        cache.claim([5])
        cache.demand([5], 1, 1)
    disk.gate.set()
    run_first.join()
    run(cache, [5])
    run(cache, [9])
    assert disk.order == [0, 5, 9]


@pytest.fixture
def in_pieces(disk):
    """4 slots for 3 layers of 4 experts in three pieces, one reader; the first piece of 0 is under way."""
    cache = ExpertCache(4, 3, 4, 1, [5, 6, 7], lambda: aligned_bytes(1), disk.fill)
    disk.gate.clear()
    ahead(cache, [0], 0)
    assert disk.begun.acquire(timeout=10)
    yield cache
    disk.gate.set()
    cache.queue.close()


def test_no_more_pieces_of_a_wrong_guess_are_read(in_pieces, disk):
    with in_pieces.changed:
        in_pieces.forget_wishes()
        assert in_pieces.slot[0] >= 0  # a piece of it is still on its way there
    disk.gate.set()
    run(in_pieces, [1])
    assert disk.pieces == [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert in_pieces.slot[0] < 0 and consistent(in_pieces)
    assert in_pieces.wasted == 1 and in_pieces.queue.bytes_read == 5 + 18


@pytest.mark.parametrize("again", ["needed", "guessed"])
def test_a_guess_that_was_given_up_and_comes_back_is_read_on(in_pieces, disk, again):
    with in_pieces.changed:
        in_pieces.forget_wishes()
    if again == "guessed":
        ahead(in_pieces, [0], 0)
    threading.Timer(0.05, disk.gate.set).start()
    assert run(in_pieces, [0]) == (0, 1, 0)
    assert disk.pieces == [(0, 0), (0, 1), (0, 2)] and in_pieces.wasted == 0


def test_the_pieces_of_what_is_needed_come_before_those_of_what_has_begun(in_pieces, disk):
    threading.Timer(0.05, disk.gate.set).start()
    run(in_pieces, [1])
    assert [expert for expert, _ in disk.pieces[:4]] == [0, 1, 1, 1]


def test_an_error_in_a_piece_ends_its_expert(in_pieces, disk):
    disk.broken = {0}
    threading.Timer(0.05, disk.gate.set).start()
    with pytest.raises(CheckpointError, match="expert 0 is broken"):
        run(in_pieces, [0])
    assert disk.pieces == [(0, 0)] and in_pieces.slot[0] < 0 and consistent(in_pieces)


def test_an_error_reaches_who_waits_and_leaves_no_trace(cache, disk):
    run(cache, [0])
    disk.broken = {1}
    with pytest.raises(CheckpointError, match="expert 1 is broken"):
        run(cache, [0, 1, 2])
    assert cache.slot[1] < 0 and consistent(cache)
    disk.broken = set()
    assert run(cache, [0, 1])[2] == 1


def test_an_error_of_a_read_ahead_is_forgotten_by_the_next_attempt(cache, disk):
    disk.broken = {0, 1}
    ahead(cache, [0, 1], 0)
    with cache.changed:
        cache.changed.wait_for(lambda: cache.slot[0] < 0 and cache.slot[1] < 0, 10)
    disk.broken = set()
    assert run(cache, [0]) == (0, 0, 1)


def test_a_failure_of_our_own_is_raised_too(cache, disk, monkeypatch):
    disk.broken = None
    with pytest.raises(TypeError):
        run(cache, [0])
