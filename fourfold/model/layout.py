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
    positions [B, S]: position of each block's first token; visible [B, T, 2]: the entries each query sees.
    """

    tokens: Tensor
    positions: Tensor
    visible: Tensor
    most_visible: int


class Layout:
    """positions [B, T] int64; window_range [B, T, 2] int64 into the window buffer; `blocks(ratio)`."""

    def __init__(self, rows: Sequence[Sequence[Segment]], window: int, device: torch.device) -> None:
        self.rows = rows
        self.device = device
        self.shape = (len(rows), sum(segment.new for segment in rows[0]))
        self._segments = [segment for row in rows for segment in row]
        self._counts = torch.tensor([segment.new for segment in self._segments])
        past = self._per_token([segment.past for segment in self._segments])
        first = self._per_token(_offsets([[s.new for s in row] for row in rows]))
        column = torch.arange(self.shape[1], device=device).expand(self.shape)
        self.positions = column - first + past
        held = [[s.past + s.new - s.window_start for s in row] for row in rows]
        starts = [s.window_start for s in self._segments]
        shift = self._per_token([o - s for o, s in zip(_offsets(held), starts, strict=True)])
        # Only an MTP block that catches up starts in the middle; its first outputs, short of a window, go
        # unused.
        low = torch.maximum(self.positions - window + 1, self._per_token(starts))
        self.window_range = torch.stack([low + shift, self.positions + 1 + shift], dim=-1)
        self._blocks: dict[tuple[int, bool], Blocks] = {}

    def blocks(self, ratio: int, overlapping: bool) -> Blocks:
        """The blocks of `ratio` tokens that this call completes; overlapping ones span the one before,
        too."""
        key = (ratio, overlapping)
        if key not in self._blocks:
            self._blocks[key] = self._find_blocks(ratio, overlapping)
        return self._blocks[key]

    def _find_blocks(self, ratio: int, overlapping: bool) -> Blocks:
        reach = 2 * ratio if overlapping else ratio
        most = max(sum(len(s.completed(ratio)) for s in row) for row in self.rows)
        tokens = torch.zeros(len(self.rows), most, reach, dtype=torch.int64)
        positions = torch.zeros(len(self.rows), most, dtype=torch.int64)
        for b, row in enumerate(self.rows):
            at = offset = 0
            for s in row:
                start = s.tail_starts.get(ratio, 0)
                numbers = torch.arange(s.completed(ratio).start, s.completed(ratio).stop)
                inside = (numbers[:, None] + 1) * ratio - reach + torch.arange(reach)
                here = slice(at, at + len(numbers))
                tokens[b, here] = (inside - start + offset).where(inside >= 0, -1)
                positions[b, here] = numbers * ratio
                at += len(numbers)
                offset += s.past + s.new - start
        visible = self._visible(ratio)
        return Blocks(tokens.to(self.device), positions.to(self.device), visible, self._most_visible(ratio))

    def _visible(self, ratio: int) -> Tensor:
        base = self._per_token(_offsets([[s.entries(ratio) for s in row] for row in self.rows]))
        return torch.stack([base, base + (self.positions + 1) // ratio], dim=-1)

    def _most_visible(self, ratio: int) -> int:
        return max(s.entries(ratio) for s in self._segments)

    def _per_token(self, values: Sequence[int]) -> Tensor:
        repeated = torch.tensor(values, dtype=torch.int64).repeat_interleave(self._counts)
        return repeated.view(self.shape).to(self.device)


def _offsets(sizes: Sequence[Sequence[int]]) -> list[int]:
    """Start of each piece within its row, for rows laid out one piece after the other."""
    starts = []
    for row in sizes:
        at = 0
        for size in row:
            starts.append(at)
            at += size
    return starts


def packed_rows(segments: Tensor) -> list[list[Segment]]:
    """Rows of training samples from their numbers.  segments [B, T] int64, equal runs are one sample."""
    rows = []
    for row in segments.cpu():
        lengths = row.unique_consecutive(return_counts=True)[1].tolist()
        rows.append([Segment(past=0, new=length) for length in lengths])
    return rows
