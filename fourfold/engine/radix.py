"""The prefix tree: which beginnings of token sequences can be continued without computing them again.

An edge is a whole block of tokens and its node holds that block's number, so sequences that begin alike share
nodes and with them memory.  Blocks alone cannot be continued: windows and open compressor blocks are not in
them.  Snapshots of that state hang on the node of their last whole block, with the tokens that follow it.
A node lives as long as a snapshot at or below it; the least recently used snapshot goes first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile

from fourfold.engine.blocks import BlockPool


class TokenIds:
    """Token ids of a sequence that grows, and the keys of its whole blocks.

    scope: sequences of two scopes have no beginning in common, whatever their ids.
    """

    def __init__(self, ids: Iterable[int], block_tokens: int, scope: str = "") -> None:
        self.ids = list(ids)
        self.block_tokens = block_tokens
        self.scope = scope
        self._keys: list[bytes] = []

    def __len__(self) -> int:
        return len(self.ids)

    def key(self, block: int) -> bytes:
        """Tokens of a whole block.  The object is kept, and with it its hash."""
        while len(self._keys) <= block:
            start = len(self._keys) * self.block_tokens
            self._keys.append(self.piece(start, start + self.block_tokens))
        return self._keys[block]

    def piece(self, start: int, end: int) -> bytes:
        return array("i", self.ids[start:end]).tobytes()

    def common(self, other: TokenIds) -> int:
        """How many tokens both begin with."""
        most = min(len(self), len(other)) if self.scope == other.scope else 0
        count = 0
        while count + self.block_tokens <= most and self.key(count // self.block_tokens) == other.key(
            count // self.block_tokens
        ):
            count += self.block_tokens
        while count < most and self.ids[count] == other.ids[count]:
            count += 1
        return count


@dataclass(eq=False)
class Node:
    """One block of tokens after those of its ancestors; the root has none."""

    block: int
    key: bytes
    parent: Node | None
    children: dict[bytes, Node] = field(default_factory=dict)
    snapshots: dict[bytes, Snapshot] = field(default_factory=dict)


@dataclass(eq=False)
class Snapshot:
    """A state that can be continued.  slot: where it lies; position: tokens that it has seen.

    tail: the tokens after the node's own; block: the block that holds their entries, None where there are no
    such tokens.  A request may still append to that block, so what restarts here takes a copy.
    """

    slot: int
    position: int
    node: Node
    tail: bytes
    block: int | None


@dataclass(frozen=True)
class Match:
    """Where a sequence can start.  snapshot: the longest usable one; blocks: the whole ones before it."""

    snapshot: Snapshot | None
    blocks: tuple[int, ...]

    @property
    def position(self) -> int:
        return 0 if self.snapshot is None else self.snapshot.position


class PrefixTree:
    """Blocks of `pool` and up to `snapshots` states, found by the tokens that made them."""

    def __init__(self, pool: BlockPool, block_tokens: int, snapshots: int) -> None:
        self.pool = pool
        self.block_tokens = block_tokens
        self.capacity = snapshots
        self._roots: defaultdict[str, Node] = defaultdict(lambda: Node(-1, b"", None))
        self._slots = list(range(snapshots - 1, -1, -1))
        self._used: OrderedDict[int, Snapshot] = OrderedDict()

    def __len__(self) -> int:
        """Snapshots held."""
        return len(self._used)

    def find(self, tokens: TokenIds, limit: int) -> Match:
        """The longest snapshot of at most `limit` tokens that `tokens` begin with."""
        best, blocks = None, []
        for depth, node in enumerate(self._path(tokens)):
            best = self._longest(node, tokens, depth, limit) or best
            blocks.append(node.block)
        whole = 0 if best is None else best.position // self.block_tokens
        return Match(best, tuple(blocks[1 : whole + 1]))

    def shared(self, tokens: TokenIds) -> int:
        """How many first tokens of `tokens` some sequence in the tree has too, snapshot or not."""
        *_, (depth, node) = enumerate(self._path(tokens))
        start = depth * self.block_tokens
        following = tokens.ids[start : start + self.block_tokens]
        return start + max((_same(following, key) for key in (*node.children, *node.snapshots)), default=0)

    def touch(self, snapshot: Snapshot) -> None:
        """It was used now."""
        self._used.move_to_end(snapshot.slot)

    def add(
        self, tokens: TokenIds, position: int, blocks: list[int]
    ) -> tuple[Snapshot | None, dict[int, int]]:
        """A place for the state after `position` tokens, whose entries lie in `blocks`.

        Returns the snapshot, None where there is one already or no capacity; and blocks of the tree that hold
        the same entries as the caller's: index in `blocks` -> number.
        """
        whole = position // self.block_tokens
        tail = tokens.piece(whole * self.block_tokens, position)
        path = list(islice(self._path(tokens), whole + 1))
        if len(path) == whole + 1 and tail in path[-1].snapshots:
            self.touch(path[-1].snapshots[tail])
            return None, {}
        if self.capacity == 0:
            return None, {}
        # Before the path is laid: nodes without a snapshot below them would go with the one evicted.
        if not self._slots:
            self.evict()
        node, twins = self._roots[tokens.scope], {}
        for i in range(whole):
            key = tokens.key(i)
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = Node(blocks[i], key, node)
                self.pool.keep(blocks[i])
            elif child.block != blocks[i]:
                twins[i] = child.block
            node = child
        partial = blocks[whole] if tail else None
        if partial is not None:
            self.pool.keep(partial)
        snapshot = Snapshot(self._slots.pop(), position, node, tail, partial)
        node.snapshots[tail] = self._used[snapshot.slot] = snapshot
        return snapshot, twins

    def evict(self) -> None:
        """Give up the snapshot that was not used for the longest time, and the blocks that it alone kept."""
        slot, snapshot = self._used.popitem(last=False)
        self._slots.append(slot)
        node = snapshot.node
        del node.snapshots[snapshot.tail]
        if snapshot.block is not None:
            self.pool.forget(snapshot.block)
        while node.parent is not None and not node.children and not node.snapshots:
            self.pool.forget(node.block)
            del node.parent.children[node.key]
            node = node.parent

    def _path(self, tokens: TokenIds) -> Iterator[Node]:
        """The root and the nodes of the whole blocks that `tokens` begin with, as far as there are any."""
        node: Node | None = self._roots[tokens.scope]
        for depth in range(len(tokens) // self.block_tokens + 1):
            if node is None:
                return
            yield node
            if (depth + 1) * self.block_tokens <= len(tokens):
                node = node.children.get(tokens.key(depth))

    def _longest(self, node: Node, tokens: TokenIds, depth: int, limit: int) -> Snapshot | None:
        start = depth * self.block_tokens
        fitting = [
            snapshot
            for tail, snapshot in node.snapshots.items()
            if snapshot.position <= limit and tokens.piece(start, snapshot.position) == tail
        ]
        return max(fitting, key=lambda snapshot: snapshot.position, default=None)


def _same(ids: Sequence[int], key: bytes) -> int:
    """How many first ids are those of the key."""
    known = array("i")
    known.frombytes(key)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, known, strict=False)))
