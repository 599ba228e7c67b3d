"""Reads in flight: threads that take the most urgent expert's next piece, and one lock for what they share.

An expert comes in pieces, several at a time, so that one expert alone keeps the disk busy.  What is needed
first is then there early, and when it turns out which experts a layer chose, little is under way in vain.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fourfold.tiers.reader import Bytes


@dataclass(order=True)
class Read:
    """An expert on its way to a slot.  rank: 0 for one that is waited for, more for later.

    begun: pieces that were taken; flying: those of them that are not in.  dropped: no more are to be taken.
    """

    rank: int
    number: int
    expert: int = field(compare=False)
    slot: int = field(compare=False)
    begun: int = field(compare=False, default=0)
    flying: int = field(compare=False, default=0)
    dropped: bool = field(compare=False, default=False)
    error: Exception | None = field(compare=False, default=None)


class ReadQueue:
    """Threads that run `fill(expert, piece, slot, buffer)` for each piece, and `done(read)` after the last.

    pieces: the bytes of each piece of an expert.  `done` also comes when an error or `drop` has made a piece
    the last.  It runs with `changed` held, the lock of all that it touches, which is notified then.
    """

    def __init__(
        self,
        threads: int,
        pieces: Sequence[int],
        buffer: Callable[[], Bytes],
        fill: Callable[[int, int, int, Bytes], None],
        done: Callable[[Read], None],
    ) -> None:
        self.changed = threading.Condition()
        self._pieces, self._buffer, self._fill, self._done = pieces, buffer, fill, done
        self._heap: list[Read] = []
        self._numbers = itertools.count()
        self.bytes_read = 0
        self.closed = False
        for number in range(threads):
            threading.Thread(target=self._work, name=f"fourfold-read-{number}", daemon=True).start()

    def push(self, expert: int, slot: int, rank: int) -> Read:
        """Ask for a read; with `changed` held."""
        read = Read(rank, next(self._numbers), expert, slot)
        heapq.heappush(self._heap, read)
        self.changed.notify_all()
        return read

    def want(self, read: Read, rank: int) -> None:
        """As urgent as `rank` at least, whether it was dropped or not; with `changed` held."""
        if read.error is None and (read.dropped or (rank < read.rank and self._waits(read))):
            self._take_out(read)
            read.rank, read.number, read.dropped = rank, next(self._numbers), False
            heapq.heappush(self._heap, read)
            self.changed.notify_all()

    def drop(self, read: Read) -> bool:
        """Take no more pieces of it, if any are left; with `changed` held.

        True: nothing of it is under way, it is forgotten.  False: `done` will follow.
        """
        if self._waits(read):
            self._take_out(read)
            read.dropped = True
        return read.dropped and not read.flying

    def close(self) -> None:
        """Let the threads end after what they read now.

        They are not waited for: this may run in any of them, when the garbage is collected.
        """
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def _waits(self, read: Read) -> bool:
        return not read.dropped and read.error is None and read.begun < len(self._pieces)

    def _take_out(self, read: Read) -> None:
        if self._waits(read):
            self._heap = [other for other in self._heap if other is not read]
            heapq.heapify(self._heap)

    def _work(self) -> None:
        buffer = self._buffer()
        while (taken := self._next()) is not None:
            read, piece = taken
            error = None
            try:
                self._fill(read.expert, piece, read.slot, buffer)
            except Exception as wrong:  # whatever it is, it is raised where the expert is waited for
                error = wrong
            with self.changed:
                self._landed(read, piece, error)

    def _next(self) -> tuple[Read, int] | None:
        with self.changed:
            while not self._heap and not self.closed:
                self.changed.wait()
            return None if self.closed else self._take()

    def _take(self) -> tuple[Read, int]:
        """The next piece of the most urgent read."""
        read, piece = self._heap[0], self._heap[0].begun
        read.begun += 1
        read.flying += 1
        if read.begun == len(self._pieces):
            heapq.heappop(self._heap)
        return read, piece

    def _landed(self, read: Read, piece: int, error: Exception | None) -> None:
        read.flying -= 1
        if error is None:
            self.bytes_read += self._pieces[piece]
        elif read.error is None:
            self._take_out(read)
            read.error = error
        if not read.flying and not self._waits(read):
            self._done(read)
            self.changed.notify_all()
