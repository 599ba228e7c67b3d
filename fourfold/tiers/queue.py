"""Reads in flight: threads that take what is most urgent, and one lock for what they share with the model."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from fourfold.tiers.reader import Bytes


@dataclass(order=True)
class Read:
    """An expert on its way to a slot.  rank: 0 for one that is waited for, more for later."""

    rank: int
    number: int
    expert: int = field(compare=False)
    slot: int = field(compare=False)
    begun: bool = field(compare=False, default=False)
    dropped: bool = field(compare=False, default=False)


class ReadQueue:
    """Threads that run `fill(expert, slot, buffer)`, and `done(read, error)` after it with `changed` held.

    changed: the lock of all that `done` touches; it is notified after each read.
    """

    def __init__(
        self,
        threads: int,
        buffer: Callable[[], Bytes],
        fill: Callable[[int, int, Bytes], None],
        done: Callable[[Read, Exception | None], None],
    ) -> None:
        self.changed = threading.Condition()
        self._buffer, self._fill, self._done = buffer, fill, done
        self._heap: list[Read] = []
        self._numbers = itertools.count()
        self.closed = False
        for number in range(threads):
            threading.Thread(target=self._work, name=f"fourfold-read-{number}", daemon=True).start()

    def push(self, expert: int, slot: int, rank: int) -> Read:
        """Ask for a read; with `changed` held."""
        read = Read(rank, next(self._numbers), expert, slot)
        heapq.heappush(self._heap, read)
        self.changed.notify_all()
        return read

    def hasten(self, read: Read) -> Read:
        """The same read as one that is waited for, unless it has begun; with `changed` held."""
        if read.begun or read.rank == 0:
            return read
        read.dropped = True
        return self.push(read.expert, read.slot, 0)

    def drop(self, read: Read) -> bool:
        """Forget a read that has not begun; with `changed` held.  False: it has."""
        read.dropped = not read.begun
        return read.dropped

    def close(self) -> None:
        """Let the threads end after what they read now.

        They are not waited for: this may run in any of them, when the garbage is collected.
        """
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def _work(self) -> None:
        buffer = self._buffer()
        while (read := self._next()) is not None:
            error = None
            try:
                self._fill(read.expert, read.slot, buffer)
            except Exception as wrong:  # whatever it is, it is raised where the expert is waited for
                error = wrong
            with self.changed:
                self._done(read, error)
                self.changed.notify_all()

    def _next(self) -> Read | None:
        with self.changed:
            while True:
                while self._heap and self._heap[0].dropped:
                    heapq.heappop(self._heap)
                if self.closed:
                    return None
                if self._heap:
                    read = heapq.heappop(self._heap)
                    read.begun = True
                    return read
                self.changed.wait()
