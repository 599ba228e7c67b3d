"""Where the tokens of one call lie: their positions, and the buffer rows that each of them may see.

A call has B rows of T tokens.  A row is cut into segments, each of them the next tokens of one sequence: one
segment a row for a plain batch, several for packed training samples, all sequences in one row for a packed
batch.  All that attention and compression must know about phases and batches is in these integers, so the
modules have one code path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """`new` tokens of a sequence that continue after `past` ones."""

    past: int
    new: int
    window_start: int = 0
    """Position of the first row that the sequence's window buffer holds."""
    tail_starts: dict[int, int] = field(default_factory=dict)
    """The same for the compressors' pending inputs, by ratio; 0 where absent."""

    @property
    def positions(self) -> range:
        """Of these tokens."""
        return range(self.past, self.past + self.new)

    def completed(self, ratio: int) -> range:
        """Numbers of the blocks that these tokens complete."""
        return range(self.past // ratio, (self.past + self.new) // ratio)

    def entries(self, ratio: int) -> int:
        """Compressed entries that exist after these tokens."""
        return (self.past + self.new) // ratio


@dataclass(frozen=True)
class Blocks:
    """The blocks of one ratio that a call completes, S a row (padded with copies of row 0), all int64.

    tokens [B, S, m or 2m]: rows of the pending inputs that make each entry, -1 where there is no token;
    positions [B, S]: position of each block's first token.
    """

    tokens: Tensor
    positions: Tensor


class Layout:
    """positions [B, T] int64; window_range [B, T, 2] int64 into the window buffer; what follows by ratio.

    Its numbers are made in plain Python: for the one token of a decode step that is cheaper than tensors, and
    for many it is nothing beside the pass through the model.
    """

    def __init__(self, rows: Sequence[Sequence[Segment]], window: int, device: torch.device) -> None:
        self.rows = rows
        self.device = device
        self.positions = self._tensor([[p for s in row for p in s.positions] for row in rows])
        self.window_range = self._tensor([_windows(row, window) for row in rows])
        self._completed: dict[int, int] = {}
        self._visible: dict[int, Tensor] = {}
        self._blocks: dict[tuple[int, bool], Blocks] = {}

    def completed(self, ratio: int) -> int:
        """Blocks of `ratio` tokens that this call completes, in the row with most."""
        if ratio not in self._completed:
            self._completed[ratio] = max(sum(len(s.completed(ratio)) for s in row) for row in self.rows)
        return self._completed[ratio]

    def visible(self, ratio: int) -> Tensor:
        """[B, T, 2] int64: the compressed entries that each query sees."""
        if ratio not in self._visible:
            self._visible[ratio] = self._tensor([_visible(row, ratio) for row in self.rows])
        return self._visible[ratio]

    def most_visible(self, ratio: int) -> int:
        """Compressed entries that the longest sequence has."""
        return max(s.entries(ratio) for row in self.rows for s in row)

    def blocks(self, ratio: int, overlapping: bool) -> Blocks:
        """The blocks of `ratio` tokens that this call completes; overlapping ones span the one before,
        too."""
        key = (ratio, overlapping)
        if key not in self._blocks:
            self._blocks[key] = self._find_blocks(ratio, 2 * ratio if overlapping else ratio)
        return self._blocks[key]

    def listed(self, ratio: int) -> Tensor | None:
        """Rows of the entries that each query sees [B, T, K] int64, -1 padded; None: `visible` says it."""
        return None

    def places(self, chosen: Tensor, ratio: int) -> Tensor:
        """Where entries lie that were chosen in the order that `visible` counts, -1 padded."""
        return chosen

    def _find_blocks(self, ratio: int, reach: int) -> Blocks:
        tokens, positions = [], []
        for row in self.rows:
            numbers = [(s, number) for s in row for number in s.completed(ratio)]
            spare = self.completed(ratio) - len(numbers)
            tokens.append(_block_tokens(row, ratio, reach) + [[0] * reach] * spare)
            positions.append([number * ratio for _, number in numbers] + [0] * spare)
        return Blocks(self._tensor(tokens), self._tensor(positions))

    def _tensor(self, values: Sequence[Sequence[object]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def _windows(row: Sequence[Segment], window: int) -> list[tuple[int, int]]:
    """The rows of the window buffer that each token sees."""
    ranges = []
    offset = 0
    for s in row:
        shift = offset - s.window_start
        # Only an MTP block that catches up starts in the middle; its first outputs, short of a window, go
        # unused.
        ranges += [(max(p - window + 1, s.window_start) + shift, p + 1 + shift) for p in s.positions]
        offset += s.past + s.new - s.window_start
    return ranges


def _visible(row: Sequence[Segment], ratio: int) -> list[tuple[int, int]]:
    """The compressed entries that each token sees."""
    ranges = []
    first = 0
    for s in row:
        ranges += [(first, first + (p + 1) // ratio) for p in s.positions]
        first += s.entries(ratio)
    return ranges


def _block_tokens(row: Sequence[Segment], ratio: int, reach: int) -> list[list[int]]:
    """The pending inputs of each completed block: `reach` tokens up to its last."""
    rows = []
    offset = 0
    for s in row:
        start = s.tail_starts.get(ratio, 0)
        for number in s.completed(ratio):
            end = (number + 1) * ratio
            rows.append([t - start + offset if t >= 0 else -1 for t in range(end - reach, end)])
        offset += s.past + s.new - start
    return rows


def packed_rows(segments: Tensor) -> list[list[Segment]]:
    """Rows of training samples from their numbers.  segments [B, T] int64, equal runs are one sample."""
    rows = []
    for row in segments.cpu():
        lengths = row.unique_consecutive(return_counts=True)[1].tolist()
        rows.append([Segment(past=0, new=length) for length in lengths])
    return rows
