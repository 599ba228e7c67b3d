"""Who holds a block: requests, the tree, both, nobody."""

from __future__ import annotations

from fourfold.engine.blocks import BlockPool


def test_a_block_is_free_when_neither_requests_nor_the_tree_hold_it():
    pool = BlockPool(3)
    block = pool.take()
    pool.share(block)
    pool.keep(block)
    assert (pool.free, pool.evictable) == (2, 0)
    pool.drop(block)
    pool.drop(block)
    assert (pool.free, pool.evictable) == (2, 1)
    pool.share(block)
    assert pool.evictable == 0
    pool.drop(block)
    pool.keep(block)
    pool.forget(block)
    assert (pool.free, pool.evictable) == (2, 1)
    pool.forget(block)
    assert (pool.free, pool.evictable) == (3, 0)


def test_a_request_may_outlive_the_trees_interest():
    pool = BlockPool(1)
    block = pool.take()
    pool.keep(block)
    pool.forget(block)
    assert pool.free == 0
    pool.drop(block)
    assert pool.free == 1


def test_what_would_come_free():
    pool = BlockPool(4)
    first, second = [pool.take(), pool.take()], [pool.take()]
    pool.share(first[0])
    second.append(first[0])
    assert pool.held_by([first]) == 1
    assert pool.held_by([second]) == 1
    assert pool.held_by([first, second]) == 3
