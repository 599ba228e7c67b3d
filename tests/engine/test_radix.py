"""The prefix tree against a plain list of what was put into it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.engine.blocks import BlockPool
from fourfold.engine.radix import PrefixTree, TokenIds

SIZE = 4


def ids(text: str) -> TokenIds:
    return TokenIds(map(ord, text), SIZE)


def put(tree: PrefixTree, text: str, position: int | None = None) -> list[int]:
    """Add a sequence with blocks of its own, which only the tree keeps."""
    position = len(text) if position is None else position
    blocks = [tree.pool.take() for _ in range(-(-position // SIZE))]
    tree.add(ids(text), position, blocks)
    for block in blocks:
        tree.pool.drop(block)
    return blocks


def test_the_longest_snapshot_within_the_limit_is_found():
    tree = PrefixTree(BlockPool(20), SIZE, 10)
    put(tree, "abcdefgh", 6)
    blocks = put(tree, "abcdefgh")
    match = tree.find(ids("abcdefghij"), 9)
    assert match.position == 8
    assert len(match.blocks) == 2
    assert match.blocks[1] == blocks[1]
    shorter = tree.find(ids("abcdefghij"), 7)
    assert shorter.position == 6
    assert len(shorter.blocks) == 1
    assert tree.find(ids("abcdeXgh"), 7).snapshot is None
    assert tree.shared(ids("abcdeXgh")) == 5
    assert tree.shared(ids("abcdefghi")) == 8
    assert tree.shared(ids("X")) == 0


def test_sequences_that_begin_alike_share_blocks():
    tree = PrefixTree(BlockPool(20), SIZE, 10)
    mine = put(tree, "abcdefgh")
    own = [tree.pool.take() for _ in range(3)]
    snapshot, twins = tree.add(ids("abcdefghijkl"), 12, own)
    assert snapshot is not None
    assert twins == {0: mine[0], 1: mine[1]}
    assert tree.add(ids("abcdefghijkl"), 12, own) == (None, {})


def test_eviction_takes_the_least_recently_used_and_what_it_alone_kept():
    tree = PrefixTree(BlockPool(20), SIZE, 2)
    put(tree, "abcdefgh")
    put(tree, "abcdxyzw")
    assert tree.pool.evictable == 3  # the first block once
    old = tree.find(ids("abcdefgh!"), 8).snapshot
    assert old is not None
    tree.touch(old)
    put(tree, "12345")
    assert len(tree) == 2
    assert tree.find(ids("abcdxyzw!"), 8).snapshot is None
    assert tree.find(ids("abcdefgh!"), 8).position == 8
    assert tree.pool.free == 20 - 4
    tree.evict()
    tree.evict()
    assert tree.pool.free == 20


def test_a_path_that_is_being_laid_survives_the_eviction_that_it_needs():
    tree = PrefixTree(BlockPool(20), SIZE, 1)
    put(tree, "abcd")
    put(tree, "abcdef")
    assert tree.find(ids("abcdefg"), 6).position == 6
    assert tree.pool.free + tree.pool.evictable == 20


def test_common_beginning():
    for common in range(11):
        first, second = ids("x" * common + "abc"), ids("x" * common + "bcd")
        assert first.common(second) == common
    assert ids("abcdefgh").common(ids("abcdef")) == 6


TEXT = st.text(alphabet="ab", min_size=1, max_size=14)


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(st.tuples(TEXT, st.integers(1, 14)), min_size=1, max_size=14),
    capacity=st.integers(0, 4),
    question=TEXT,
)
def test_as_a_plain_list_would_answer(texts: list[tuple[str, int]], capacity: int, question: str) -> None:
    tree = PrefixTree(BlockPool(100), SIZE, capacity)
    held: list[str] = []  # the most recently used last
    for text, cut in texts:
        beginning = text[:cut]
        put(tree, text, len(beginning))
        held = [*(h for h in held if h != beginning), beginning][-capacity:] if capacity else []
    limit = len(question) - 1
    fitting = [h for h in held if question.startswith(h) and len(h) <= limit]
    assert tree.find(ids(question), limit).position == max(map(len, fitting), default=0)
    assert len(tree) == len(held)
    kept = {h[: i * SIZE] for h in held for i in range(1, len(h) // SIZE + 1)}
    least = len(kept) + sum(len(h) % SIZE > 0 for h in held)
    assert tree.pool.evictable == least
    assert tree.pool.free == 100 - least
