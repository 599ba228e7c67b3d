"""Where the tokens of a call lie in a paged cache: the rows of its slots, staging area and blocks.

The same integers for the model as `layout.Layout`, which says what they mean.  They are computed with numpy:
a call makes some fifty small arrays, and each costs torch several times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fourfold.model.layout import Blocks

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """The next `new` tokens of the sequence in `slot`, after `past` ones."""

    slot: int
    past: int
    new: int

    @property
    def end(self) -> int:
        """Tokens that count when the call is done."""
        return self.past + self.new


class PagedLayout:
    """One row with the N tokens of all spans, one span after the other.

    table [slots, most]: the blocks of each slot's sequence.  A slot has `size` rows of a stream, token p in
    row p mod size; behind all slots the call's own tokens have a row each.  held: rows of a slot's window.
    """

    def __init__(
        self,
        spans: Sequence[Span],
        window: int,
        held: int,
        table: Integers,
        block_tokens: int,
        device: torch.device,
    ) -> None:
        self.device = device
        self.spans = spans
        self._block_size = block_tokens
        self._window = window
        self._window_rows = held
        self._slots = len(table)
        self._past = np.array([s.past for s in spans], dtype=np.int64)
        self._new = np.array([s.new for s in spans], dtype=np.int64)
        self._slot = np.array([s.slot for s in spans], dtype=np.int64)
        self._end = self._past + self._new
        self._table = table
        self._first = _before(self._new)
        self._span, number = _ragged(self._new)
        self.position: Integers = self._past[self._span] + number
        """Of every token."""
        self.tokens = len(self._span)
        self._longest = max(s.end for s in spans)
        self._most_new = max(s.new for s in spans)
        self._completed: dict[int, int] = {}
        self._found: dict[tuple[str, int], Tensor] = {}

    @cached_property
    def positions(self) -> Tensor:
        """[1, N] int64."""
        return self._tensor(self.position)

    @cached_property
    def window_range(self) -> Tensor:
        """Rows of the windows, as `window_rows` lists them, that each token sees.  [1, N, 2] int64."""
        low = np.maximum(self.position - self._window + 1, 0)
        shift = (_before(self._held) - self._window_start)[self._span]
        return self._tensor(np.stack([low + shift, self.position + 1 + shift], axis=-1))

    @cached_property
    def window_rows(self) -> Tensor:
        """Rows of each span's window, held ones first, then the call's.  [L] int64."""
        span, number = _ragged(self._held)
        rows = self.rows(span, self._window_start[span] + number, self._window_rows)
        return self._tensor(rows)[0]

    @cached_property
    def held_rows(self) -> Tensor:
        """Those of a single span that are held.  [L - N] int64."""
        return self.window_rows.narrow(0, 0, len(self.window_rows) - self.tokens)

    def completed(self, ratio: int) -> int:
        """Blocks of `ratio` tokens that this call completes."""
        if ratio not in self._completed:
            self._completed[ratio] = sum(s.end // ratio - s.past // ratio for s in self.spans)
        return self._completed[ratio]

    def most_visible(self, ratio: int) -> int:
        """Compressed entries that the longest sequence has."""
        return self._longest // ratio

    def visible(self, ratio: int) -> Tensor:
        """Entries that each token sees, as `stored` lists them.  [1, N, 2] int64."""
        return self._once("visible", ratio, self._visible)

    def listed(self, ratio: int) -> Tensor | None:
        """Rows of the entries that each token sees, -1 padded [1, N, K] int64; None where there is none."""
        return self._once("listed", ratio, self._listed) if self.most_visible(ratio) else None

    def stored(self, ratio: int) -> Tensor:
        """Rows of all spans' entries, one span after the other.  [1, n] int64."""
        return self._once("stored", ratio, self._stored)

    def numbers(self, ratio: int, rows: int) -> Tensor:
        """By row of a pool of so many: where it is in `stored`.  [rows] int64."""
        return self._once("numbers", ratio, lambda ratio: self._numbers(ratio, rows))[0]

    def places(self, chosen: Tensor, ratio: int) -> Tensor:
        """Rows of entries that were chosen by that order, -1 padded."""
        return self.stored(ratio)[0][chosen.clamp_min(0)].where(chosen >= 0, -1)

    def blocks(self, ratio: int, overlapping: bool) -> Blocks:
        """The blocks of `ratio` tokens that this call completes; overlapping ones span the one before,
        too."""
        reach = 2 * ratio if overlapping else ratio
        tokens = self._once(f"{reach} tokens", ratio, lambda ratio: self._block_tokens(ratio, reach))
        return Blocks(tokens, self._once("positions", ratio, lambda ratio: self._finished(ratio)[1] * ratio))

    def written(self, ratio: int) -> Tensor:
        """Rows for the entries of these blocks.  [S] int64."""
        return self._once("written", ratio, lambda ratio: self.entry_rows(*self._finished(ratio), ratio))[0]

    def own_rows(self, size: int, counted: Sequence[int] | None = None) -> tuple[Tensor, Tensor | None]:
        """Rows of a stream with `size` rows a slot for the call's tokens, and which of these tokens have one:
        None where all do.  They are the last `size` that count of their span; counted: how many do."""
        rows = self.slot_rows(size)
        if counted is None and self._most_new <= size:
            return self._tensor(rows)[0], None
        end = (self._end if counted is None else self._past + np.array(counted))[self._span]
        last = ((self.position >= end - size) & (self.position < end)).nonzero()[0]
        return self._tensor(rows[last])[0], self._tensor(last)[0]

    def copies(self, size: int, kept: Sequence[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
        """To which rows, and from where, the states go that are kept of this call.

        kept: (span, position, slot): the last `size` of that span's first `position` tokens, to a slot.
        """
        span, position, slot = np.array(kept, dtype=np.int64).T
        count = np.minimum(position, size)
        which, number = _ragged(count)
        at = (position - count)[which] + number
        target = slot[which] * size + at % size
        return self._tensor(target)[0], self._tensor(self.rows(span[which], at, size))[0]

    def _visible(self, ratio: int) -> Integers:
        base = _before(self._end // ratio)[self._span]
        return np.stack([base, base + (self.position + 1) // ratio], axis=-1)

    def _listed(self, ratio: int) -> Integers:
        counts = self._end // ratio
        number = np.arange(counts.max())
        rows = np.full((len(counts), len(number)), -1)
        span, inside = _ragged(counts)
        rows[span, inside] = self.entry_rows(span, inside, ratio)
        seen = (self.position + 1) // ratio
        return np.where(number < seen[:, None], rows[self._span], -1)

    def _stored(self, ratio: int) -> Integers:
        return self.entry_rows(*_ragged(self._end // ratio), ratio)

    def _numbers(self, ratio: int, rows: int) -> Integers:
        stored = self._stored(ratio)
        numbers = np.zeros(rows, dtype=np.int64)
        numbers[stored] = np.arange(len(stored))
        return numbers

    def _finished(self, ratio: int) -> tuple[Integers, Integers]:
        """Span and number of each block that this call completes."""
        before = self._past // ratio
        span, number = _ragged(self._end // ratio - before)
        return span, number + before[span]

    def _block_tokens(self, ratio: int, reach: int) -> Integers:
        """The pending inputs of each completed block: `reach` tokens up to its last."""
        span, number = self._finished(ratio)
        inside = (number[:, None] + 1) * ratio - reach + np.arange(reach)
        return np.where(inside >= 0, self.rows(span[:, None], inside, reach), -1)

    def _once(self, name: str, ratio: int, find: Callable[[int], Integers]) -> Tensor:
        """What the first layer of a kind found serves the others."""
        if (name, ratio) not in self._found:
            self._found[name, ratio] = self._tensor(find(ratio))
        return self._found[name, ratio]

    @property
    def _window_start(self) -> Integers:
        """Position of the first row of each span's window."""
        return np.maximum(self._past - self._window + 1, 0)

    @property
    def _held(self) -> Integers:
        """Rows of each span's window, the call's included."""
        return self._end - self._window_start

    def rows(self, span: Integers, position: Integers, size: int) -> Integers:
        """Rows of a stream with `size` rows a slot that hold tokens of spans, from before or of this call."""
        past = self._past[span]
        staged = self._slots * size + self._first[span] + position - past
        return np.where(position < past, self._slot[span] * size + position % size, staged)

    def slot_rows(self, size: int) -> Integers:
        """Rows of a stream with `size` rows a slot for the call's tokens."""
        return self._slot[self._span] * size + self.position % size

    def table_rows(self, count: int) -> Integers:
        """The first `count` blocks of each span's table; those that it does not have yet are any."""
        return self._table[self._slot, :count]

    def entry_rows(self, span: Integers, number: Integers, ratio: int) -> Integers:
        """Rows of spans' entries of these numbers in the blocks."""
        size = self._block_size // ratio
        return self._table[self._slot[span], number // size] * size + number % size

    def _tensor(self, values: Integers) -> Tensor:
        """[1, ...] on the device."""
        tensor = torch.from_numpy(values)[None]
        return tensor if self.device.type == "cpu" else tensor.to(self.device)


def _before(counts: Integers) -> Integers:
    """Sum of the counts before each."""
    return counts.cumsum() - counts


def _ragged(counts: Integers) -> tuple[Integers, Integers]:
    """For `counts` things of each group: every thing's group, and its number within it.  [sum] each."""
    group = np.repeat(np.arange(len(counts)), counts)
    return group, np.arange(len(group)) - _before(counts)[group]
