"""Storage of what a sequence must remember, as buffers that grow at the end and forget at the front.

A buffer is one tensor a layer: window KV, a compressor's pending inputs, or its finished entries.  Those of
one kind move in step, so their group does the bookkeeping once: the number that the first row stands for, the
capacity, and how many rows count.  Rows beyond that are leftovers of a call that failed or was rolled back.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class KVBuffer(Protocol):
    """What a layer needs: append this call's rows, get the buffer that the layout's indices point into."""

    def extend(self, rows: Tensor) -> Tensor:
        """rows [B, T, D] -> [B, L, D], held rows first; [1, L, D] where all B point into the same."""
        ...

    def unchanged(self) -> Tensor | None:
        """The same in a call that brings no rows; None if none has ever come."""
        ...

    def slot(self, new: int) -> tuple[Tensor, Tensor] | None:
        """Where the caller itself may put this call's rows [B, new, D], and the buffer with them; None where
        they must be handed over."""
        ...

    def in_order(self, buffer: Tensor) -> Tensor:
        """What `extend` or `unchanged` gave, its rows in the order that the layout's `visible` counts."""
        ...

    def seen(self, buffer: Tensor | None, chosen: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The rows of it that attention reads, which are `chosen` [B, T, K] where that is no range, and their
        numbers in what is given back."""
        ...


class AsItIs:
    """A buffer whose rows lie in order and are read where they are."""

    def in_order(self, buffer: Tensor) -> Tensor:
        return buffer

    def seen(self, buffer: Tensor | None, chosen: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return buffer, chosen


class FreshBuffer(AsItIs):
    """No memory: the buffer is what this call brings.  Autograd passes through."""

    def extend(self, rows: Tensor) -> Tensor:
        return rows

    def unchanged(self) -> None:
        return None

    def slot(self, new: int) -> None:
        return None


class BufferGroup:
    """The common shape of buffers that hold one row per `unit` tokens.

    keep: rows that must survive when room is made at the front, None to keep all.
    """

    def __init__(self, *, unit: int = 1, keep: int | None) -> None:
        self.unit = unit
        self.keep = keep
        self.start = 0
        self.filled = 0
        self.capacity = 0
        self.buffers: list[Buffer] = []

    def reserve(self, length: int, new: int) -> None:
        """Make room for `new` tokens after `length`; drop rows that nothing can ask for again."""
        self.filled = length // self.unit
        needed = (length + new) // self.unit
        if needed - self.start <= self.capacity:
            return
        if self.keep is not None:
            self.start = max(self.start, self.filled - self.keep)
        # Doubling for buffers that keep all, twice what is kept for the others: copying stays amortised.
        spare = 2 * self.capacity if self.keep is None else 2 * self.keep
        self.capacity = max(needed - self.start, spare)

    def restart(self, position: int) -> None:
        """Forget everything; the next row stands for `position`."""
        self.start = self.filled = position

    def new_buffer(self, batch: int) -> Buffer:
        buffer = Buffer(self, batch)
        self.buffers.append(buffer)
        return buffer

    @property
    def bytes(self) -> int:
        return sum(buffer.bytes for buffer in self.buffers)


class Buffer(AsItIs):
    """A buffer [B, capacity, D], made by the first rows that arrive, in their dtype.

    It follows its group's start and capacity when it is next written.  Each knows what its own first row
    stands for, so an interruption between two of them leaves nothing half moved.
    """

    def __init__(self, group: BufferGroup, batch: int) -> None:
        self.group = group
        self.batch = batch
        self._held: tuple[int, Tensor] | None = None

    def extend(self, rows: Tensor) -> Tensor:
        begin = self.group.filled - self.group.start
        data = self._follow(rows)
        data.narrow(1, begin, rows.shape[1]).copy_(rows)
        return data.narrow(1, 0, begin + rows.shape[1])

    def unchanged(self) -> Tensor | None:
        if self._held is None:
            return None
        start, data = self._held
        return data.narrow(1, self.group.start - start, self.group.filled - self.group.start)

    def slot(self, new: int) -> tuple[Tensor, Tensor] | None:
        if self._held is None:
            return None
        begin = self.group.filled - self.group.start
        data = self._follow(self._held[1])
        return data.narrow(1, begin, new), data.narrow(1, 0, begin + new)

    def held(self) -> Tensor:
        """The buffer as it was last written, from the group's start on."""
        assert self._held is not None
        start, data = self._held
        assert start == self.group.start
        return data

    def _follow(self, rows: Tensor) -> Tensor:
        """The buffer of the group's start and capacity; `rows` are like those that it holds."""
        start, capacity = self.group.start, self.group.capacity
        if self._held is not None and self._held[0] == start and self._held[1].shape[1] == capacity:
            return self._held[1]
        data = rows.new_empty(self.batch, capacity, rows.shape[2])
        count = self.group.filled - start
        if self._held is not None and count > 0:
            before, old = self._held
            data[:, :count] = old[:, start - before : start - before + count]
        self._held = (start, data)
        return data

    @property
    def bytes(self) -> int:
        return 0 if self._held is None else self._held[1].nbytes
