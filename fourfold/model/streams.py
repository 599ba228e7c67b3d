"""Storage of what a sequence must remember, as buffers that grow at the end and forget at the front.

A stream is one tensor a layer: window KV, a compressor's pending inputs, or its finished entries.  Streams of
one kind move in step, so their group does the bookkeeping once: the number that the first row stands for, the
capacity, and how many rows count.  Rows beyond that are leftovers of a call that failed or was rolled back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class KVStream(Protocol):
    """What a layer needs: append the rows of this call, get the buffer that the layout's indices point
    into."""

    def extend(self, rows: Tensor) -> Tensor:
        """rows [B, T, D] -> [B, L, D], held rows first."""
        ...


class FreshStream:
    """No memory: the buffer is what this call brings.  Autograd passes through."""

    def extend(self, rows: Tensor) -> Tensor:
        return rows


class StreamGroup:
    """The common shape of streams that hold one row per `unit` tokens.

    keep: rows that must survive when room is made at the front, None to keep all.
    """

    def __init__(self, *, unit: int = 1, keep: int | None) -> None:
        self.unit = unit
        self.keep = keep
        self.start = 0
        self.filled = 0
        self.capacity = 0
        self.streams: list[Stream] = []

    def reserve(self, length: int, new: int) -> None:
        """Make room for `new` tokens after `length`; drop rows that nothing can ask for again."""
        self.filled = length // self.unit
        needed = (length + new) // self.unit
        if needed - self.start <= self.capacity:
            return
        start = self.start if self.keep is None else max(self.start, self.filled - self.keep)
        # Doubling for streams that keep all, twice what is kept for the others: copying stays amortised.
        spare = 2 * self.capacity if self.keep is None else 2 * self.keep
        capacity = max(needed - start, spare)
        for stream in self.streams:
            stream.move(start - self.start, self.filled - start, capacity)
        self.start, self.capacity = start, capacity

    def restart(self, position: int) -> None:
        """Forget everything; the next row stands for `position`."""
        self.start = self.filled = position

    def new_stream(self, batch: int) -> Stream:
        stream = Stream(self, batch)
        self.streams.append(stream)
        return stream

    @property
    def bytes(self) -> int:
        return sum(s.data.nbytes for s in self.streams if s.data is not None)


class Stream:
    """data [B, capacity, D], allocated by the first rows that arrive, in their dtype."""

    def __init__(self, group: StreamGroup, batch: int) -> None:
        self.group = group
        self.batch = batch
        self.data: Tensor | None = None

    def extend(self, rows: Tensor) -> Tensor:
        begin = self.group.filled - self.group.start
        end = begin + rows.shape[1]
        if self.data is None:
            self.data = rows.new_empty(self.batch, self.group.capacity, rows.shape[2])
        self.data[:, begin:end] = rows
        return self.data[:, :end]

    def move(self, dropped: int, held: int, capacity: int) -> None:
        """Into a buffer of another capacity, without the first `dropped` rows."""
        if self.data is None:
            return
        data = self.data.new_empty(self.batch, capacity, self.data.shape[2])
        data[:, :held] = self.data[:, dropped : dropped + held]
        self.data = data


class JoinedStream:
    """Streams of several sequences as one row, one after the other."""

    def __init__(self, streams: Sequence[KVStream], sizes: Sequence[int]) -> None:
        self.streams = streams
        self.sizes = list(sizes)

    def extend(self, rows: Tensor) -> Tensor:
        parts = rows.split(self.sizes, dim=1)
        return torch.cat([s.extend(part) for s, part in zip(self.streams, parts, strict=True)], dim=1)
