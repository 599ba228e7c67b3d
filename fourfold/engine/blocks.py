"""Who holds which block of the cache.  Numbers only; what the blocks contain lies in `model.paged`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain


class BlockPool:
    """Blocks 0 to count - 1.  A block is held by any number of requests and by the prefix tree.

    It is free when nobody holds it, and evictable when only the tree does.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.evictable = 0
        self._free = list(range(count - 1, -1, -1))
        self._users = [0] * count
        self._kept = [0] * count

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A free block, for one request."""
        block = self._free.pop()
        self._users[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more request holds it."""
        assert self._held(block)
        self.evictable -= self._users[block] == 0
        self._users[block] += 1

    def drop(self, block: int) -> None:
        """One request less holds it."""
        assert self._users[block] > 0
        self._users[block] -= 1
        if self._users[block] == 0:
            self.evictable += self._kept[block] > 0
            self._release(block)

    def keep(self, block: int) -> None:
        """The tree holds it (once more)."""
        assert self._held(block)
        self.evictable += self._users[block] == 0 and self._kept[block] == 0
        self._kept[block] += 1

    def forget(self, block: int) -> None:
        """The tree holds it once less."""
        assert self._kept[block] > 0
        self._kept[block] -= 1
        if self._kept[block] == 0:
            self.evictable -= self._users[block] == 0
            self._release(block)

    def held_by(self, groups: Iterable[Iterable[int]]) -> int:
        """How many blocks no request would hold any more if these holdings ended."""
        holdings = Counter(chain.from_iterable(groups))
        return sum(self._users[block] == count for block, count in holdings.items())

    def _held(self, block: int) -> bool:
        return self._users[block] > 0 or self._kept[block] > 0

    def _release(self, block: int) -> None:
        if not self._held(block):
            self._free.append(block)
