"""Token samples to packed batches, in an order that is a pure function of (seed, epoch).

Rows of T tokens hold several samples; `segments` keeps them apart (equal numbers are one sample), so the
model shows none of them to another and restarts positions. An epoch is shuffled as a whole and packed window
by window, so that only a window's pieces are in memory. What a window holds follows from its number: the
whole state of the stream is (window, row), and resuming needs no generator state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from fourfold.train.corpus import Sample
from fourfold.train.store import Stored

IGNORE = -100  # target of a position that has no loss
OPEN_ROWS = 64  # rows filled side by side; more pack tighter and shuffle a little less
WINDOW = 1 << 16  # samples that are packed together


@dataclass(frozen=True, kw_only=True)
class Batch:
    """ids, segments, targets, targets2: int64 [B, T].

    targets[t] is the token after t, targets2[t] the one after that (for MTP); IGNORE at a sample's end, on
    padding and, when only answers are learnt, on prompts.
    """

    ids: Tensor
    segments: Tensor
    targets: Tensor
    targets2: Tensor

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`."""
        return type(self)(**{name: value.to(device) for name, value in vars(self).items()})

    def split(self, parts: int) -> list[Self]:
        """The same rows in `parts` batches of equally many."""
        cuts = {name: value.chunk(parts) for name, value in vars(self).items()}
        return [type(self)(**{name: cut[i] for name, cut in cuts.items()}) for i in range(parts)]

    @property
    def learnt(self) -> int:
        """Positions that have a target."""
        return int((self.targets != IGNORE).sum())


class Stream(Protocol):
    """An endless stream of batches.  position: all there is to resume, good for an equal fingerprint only."""

    position: tuple[int, int]

    def describe(self) -> str:
        """One line for the start of a run."""
        ...

    def fingerprint(self) -> str:
        """Tells streams of other batches."""
        ...

    def next(self) -> Batch:
        """The next step's batch."""
        ...


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A sample, or part of one that is longer than a row.  learn: bool, the tokens that may be targets."""

    ids: np.ndarray
    learn: np.ndarray


def cut(sample: Sample, length: int, answers_only: bool) -> list[Piece]:
    """The sample in pieces of at most `length` tokens."""
    learn = sample.answer if answers_only else np.ones(len(sample.ids), dtype=bool)
    return [
        Piece(ids=sample.ids[start : start + length], learn=learn[start : start + length])
        for start in range(0, len(sample.ids), length)
    ]


def pack(pieces: list[Piece], length: int) -> list[list[Piece]]:
    """Rows of pieces with at most `length` tokens each: best fit among a few open rows, in order."""
    done: list[list[Piece]] = []
    rows: list[list[Piece]] = []
    room: list[int] = []
    for piece in pieces:
        size = len(piece.ids)
        fitting = [i for i, left in enumerate(room) if left >= size]
        if fitting:
            best = min(fitting, key=room.__getitem__)
            rows[best].append(piece)
            room[best] -= size
        else:
            rows.append([piece])
            room.append(length - size)
            best = len(rows) - 1
        if room[best] < 4 or len(rows) > OPEN_ROWS:
            fullest = min(range(len(rows)), key=room.__getitem__)
            done.append(rows.pop(fullest))
            room.pop(fullest)
    return done + rows


class PackedData:
    """An endless stream of batches over the samples; `position` = (window, row) is all there is to resume.

    Windows are counted over all epochs, each of which has as many.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        length: int,
        batch_size: int,
        answers_only: bool,
        pad: int,
        seed: int,
    ) -> None:
        self.samples = samples
        self.length = length
        self.batch_size = batch_size
        self.answers_only = answers_only
        self.pad = pad
        self.seed = seed
        self.position = (0, 0)
        self._rows: list[list[Piece]] = []
        self._rows_of = -1
        if isinstance(samples, Stored):
            self._weights, self._lengths = samples.weights, samples.lengths
        else:
            self._weights = np.asarray([sample.weight for sample in samples])
            self._lengths = np.asarray([len(sample.ids) for sample in samples])
        self._windows = max(1, -(-int(np.ceil(self._weights).sum()) // WINDOW))

    def fingerprint(self) -> str:
        """Changes with samples, weights and packing: a position is only good for an equal one."""
        digest = hashlib.sha256(f"{self.length} {self.batch_size} {self.seed} {self.answers_only}".encode())
        if isinstance(self.samples, Stored):
            digest.update(self.samples.fingerprint().encode())
            return digest.hexdigest()
        for sample in self.samples:
            digest.update(sample.ids.tobytes() + str(sample.weight).encode())
        return digest.hexdigest()

    def describe(self) -> str:
        """One line for the start of a run."""
        tokens = round(float(self._lengths @ self._weights))
        return f"{len(self.samples):,} samples, {tokens:,} tokens an epoch"

    def pieces(self) -> Iterator[np.ndarray]:
        """The ids, int32 [n], of all that its rows are made of."""
        return (p.ids for sample in self.samples for p in cut(sample, self.length, self.answers_only))

    def window_rows(self, window: int) -> list[list[Piece]]:
        """All rows of a window: its part of the epoch's samples, repeated by weight and shuffled; packed."""
        if self._rows_of != window:
            epoch, part = divmod(window, self._windows)
            generator = np.random.default_rng((self.seed, epoch))
            times = np.floor(self._weights + generator.random(len(self._weights))).astype(int)
            order = generator.permutation(np.repeat(np.arange(len(times)), times))
            chosen = np.array_split(order, self._windows)[part]
            pieces = [p for i in chosen for p in cut(self.samples[i], self.length, self.answers_only)]
            self._rows, self._rows_of = pack(pieces, self.length), window
        return self._rows

    def next(self) -> Batch:
        """The next B rows; a batch may hold the end of one window and the start of the next."""
        rows: list[list[Piece]] = []
        window, cursor = self.position
        while len(rows) < self.batch_size:
            taken = self.window_rows(window)[cursor : cursor + self.batch_size - len(rows)]
            rows += taken
            cursor += len(taken)
            if cursor >= len(self.window_rows(window)):
                window, cursor = window + 1, 0
        self.position = (window, cursor)
        return self.batch(rows)

    def batch(self, rows: list[list[Piece]]) -> Batch:
        """Rows of pieces as tensors; what is left of a row is padding in a segment of its own, without
        targets.
        """
        shape = (len(rows), self.length)
        ids = np.full(shape, self.pad, dtype=np.int64)
        segments = np.zeros(shape, dtype=np.int64)
        targets = np.full((2, *shape), IGNORE, dtype=np.int64)
        for r, pieces in enumerate(rows):
            start = 0
            for number, piece in enumerate(pieces):
                size = len(piece.ids)
                ids[r, start : start + size] = piece.ids
                segments[r, start : start + size] = number
                for ahead in (1, 2):
                    known = np.where(piece.learn, piece.ids, IGNORE)
                    targets[ahead - 1, r, start : start + max(size - ahead, 0)] = known[ahead:]
                start += size
            segments[r, start:] = len(pieces)
        one, two = torch.from_numpy(targets)
        return Batch(
            ids=torch.from_numpy(ids), segments=torch.from_numpy(segments), targets=one, targets2=two
        )
