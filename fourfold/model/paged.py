"""The cache of many sequences of any lengths that come and go: entries in blocks, all else in slots.

Compressed entries and index keys lie in blocks of a pool; which ones are a sequence's is its slot's table.
What cannot be shared lies in the slot itself, of a fixed size: the last rows of each window and the pending
inputs of open compressor blocks, token p in row p mod size.  Rows of the running call wait in a staging area
behind the slots and move there by `commit`, so a call that fails changes nothing.  V4 report 3.6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.model.buffers import AsItIs
from fourfold.model.memory import FRESH, LayerMemory
from fourfold.model.paged_fixed import FixedLayout, FixedStep
from fourfold.model.paged_layout import PagedLayout, Span
from fourfold.model.paged_shape import Packing, Shape, Stream

_LINE = 64  # bytes; rows begin with a cache line


@dataclass(frozen=True)
class Saved:
    """A sequence's slot and blocks in the host's memory, by stream."""

    slot: dict[str, Tensor]
    blocks: dict[str, Tensor]


class PagedCache:
    """Memory for `slots` sequences and states, `blocks` blocks, and calls of up to `call_tokens` tokens.

    For the model `owner` alone.  Who holds which slot and block is the caller's to know; here they are
    numbers.
    """

    def __init__(
        self,
        config: ModelConfig,
        shape: Shape,
        owner: object,
        device: torch.device,
        *,
        slots: int,
        blocks: int,
        call_tokens: int,
    ) -> None:
        self.config, self.owner, self.device = config, owner, device
        self.shape = shape
        # One slot more, right before the staging area: a single window becomes one piece with it there.
        self.slots, self.blocks, self.call_tokens = slots + 1, blocks, call_tokens
        most = -(-config.max_position_embeddings // shape.block_tokens)
        self._table = np.zeros((self.slots, most), dtype=np.int64)
        self._assigned: list[list[int]] = [[] for _ in range(slots)]
        self._of_slots = {
            name: self._new(stream, self.slots * stream.rows + call_tokens)
            for name, stream in self.shape.slots.items()
        }
        self._of_blocks = {
            name: self._new(stream, blocks * stream.rows) for name, stream in self.shape.blocks.items()
        }
        self._running: PagedLayout | FixedLayout | None = None
        self.layers = [self._layer(i, kind) for i, kind in enumerate(config.layer_kinds)]

    def begin(self, spans: Sequence[Span]) -> PagedLayout:
        """The layout of the next call: the tokens of each span, one span after the other."""
        assert sum(span.new for span in spans) <= self.call_tokens
        self._running = layout = self._layout(spans)
        return layout

    def fixed_step(self, batch: int, context: int) -> FixedStep:
        """Places for calls of one token of each of up to `batch` sequences, of up to `context` tokens."""
        assert batch <= self.call_tokens
        return FixedStep(
            batch,
            min(context, self._table.shape[1] * self.shape.block_tokens),
            window=self.config.sliding_window,
            held=self.shape.slots["window"].rows,
            block_tokens=self.shape.block_tokens,
            ratios=[ratio for ratio in self.config.layer_ratios if ratio],
            sizes=[stream.rows for stream in self.shape.slots.values()],
            call_of=self._layout,
            device=self.device,
        )

    def begin_fixed(self, step: FixedStep) -> FixedLayout:
        """The layout of the next call: what `step` was filled with."""
        self._running = layout = FixedLayout(step)
        return layout

    def commit(self, kept: Sequence[tuple[int, int, int]] = (), counted: Sequence[int] | None = None) -> None:
        """The call's tokens count from now on, or the first `counted` of each span.

        The others are taken back as if they had never been seen: what they left in blocks lies behind the
        entries that any token sees, and is written anew before one does.
        kept: (span, position, slot): the state of that span after `position` tokens, one of those that count,
        goes to another slot, too.
        """
        call = self.running
        for name, data in self._of_slots.items():
            size = self.shape.slots[name].rows
            if kept:
                # First, while the slots still hold what the call's tokens will replace.
                target, source = call.copies(size, kept)
                data.index_copy_(1, target, data.index_select(1, source))
            rows, which = call.own_rows(size, counted)
            slots = data.narrow(1, 0, self.slots * size)
            staged = data.narrow(1, self.slots * size, call.tokens)
            slots.index_copy_(1, rows, staged if which is None else staged.index_select(1, which))

    @property
    def running(self) -> PagedLayout | FixedLayout:
        """The layout of the call that runs."""
        assert self._running is not None
        return self._running

    def assign(self, slot: int, blocks: Sequence[int]) -> None:
        """These blocks are those of the sequence in `slot`."""
        known = self._assigned[slot]
        if known == blocks:
            return
        same = next((i for i, (a, b) in enumerate(zip(known, blocks, strict=False)) if a != b), len(known))
        same = min(same, len(blocks))
        self._table[slot, same : len(blocks)] = blocks[same:]
        self._assigned[slot] = list(blocks)

    def copy_slot(self, source: int, target: int) -> None:
        """The state in one slot, to another."""
        for rows in self._slot_rows().values():
            rows[:, target] = rows[:, source]

    def copy_block(self, source: int, target: int) -> None:
        """The entries in one block, to another."""
        for rows in self._block_rows().values():
            rows[:, target] = rows[:, source]

    def save(self, slot: int, blocks: Sequence[int]) -> Saved:
        """Copies of a slot and of blocks, in the host's memory."""
        index = torch.tensor(blocks, dtype=torch.int64, device=self.device)
        return Saved(
            {name: rows[:, slot].clone().cpu() for name, rows in self._slot_rows().items()},
            {name: rows.index_select(1, index).cpu() for name, rows in self._block_rows().items()},
        )

    def restore(self, saved: Saved, slot: int, blocks: Sequence[int]) -> None:
        """A saved sequence, into this slot and these blocks."""
        index = torch.tensor(blocks, dtype=torch.int64, device=self.device)
        for name, rows in self._slot_rows().items():
            rows[:, slot] = saved.slot[name].to(self.device)
        for name, rows in self._block_rows().items():
            rows.index_copy_(1, index, saved.blocks[name].to(self.device))

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(data.nbytes for data in (*self._of_slots.values(), *self._of_blocks.values()))

    def _layout(self, spans: Sequence[Span]) -> PagedLayout:
        window, held = self.config.sliding_window, self.shape.slots["window"].rows
        return PagedLayout(spans, window, held, self._table, self.shape.block_tokens, self.device)

    def _new(self, stream: Stream, rows: int) -> Tensor:
        shape = len(stream.layers), rows, stream.width
        # Zeros, not what memory happens to hold: a kernel may multiply rows that it then masks.
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=stream.dtype, device=self.device)
        # torch writes its zeros; the system gives pages of zeros when they are first touched.
        size = math.prod(shape) * stream.dtype.itemsize
        memory = np.zeros(size + _LINE, dtype=np.uint8)
        start = -memory.ctypes.data % _LINE
        return torch.from_numpy(memory[start : start + size]).view(stream.dtype).view(shape)

    def _slot_rows(self) -> dict[str, Tensor]:
        """[layers, slots, rows, width] of each stream."""
        sizes = {name: stream.rows for name, stream in self.shape.slots.items()}
        return {
            name: data[:, : self.slots * sizes[name]].unflatten(1, (self.slots, sizes[name]))
            for name, data in self._of_slots.items()
        }

    def _block_rows(self) -> dict[str, Tensor]:
        """[layers, blocks, rows, width] of each stream."""
        return {name: data.unflatten(1, (self.blocks, -1)) for name, data in self._of_blocks.items()}

    def _layer(self, layer: int, kind: str) -> LayerMemory:
        window = PagedWindow(self, self._of_slots["window"][layer], self.shape.slots["window"].packing)
        if kind == "swa":
            return LayerMemory(window, FRESH, FRESH, FRESH, FRESH)
        place = self.shape.slots[f"{kind} tail"].layers.index(layer)

        def tail(name: str) -> PagedTail:
            return PagedTail(self, self._of_slots[f"{name} tail"][place])

        def entries(name: str) -> PagedEntries:
            stored = f"{name} entries"
            packing, ratio = self.shape.blocks[stored].packing, self.config.layer_ratios[layer]
            return PagedEntries(self, self._of_blocks[stored][place], ratio, packing)

        if kind == "hca":
            return LayerMemory(window, tail("hca"), entries("hca"), FRESH, FRESH)
        return LayerMemory(window, tail("csa"), entries("csa"), tail("csa index"), entries("csa index"))


class PagedTail(AsItIs):
    """A compressor's pending inputs.  The layout names the rows that make an entry."""

    def __init__(self, cache: PagedCache, data: Tensor) -> None:
        self.cache = cache
        self.data = data
        self._staging = len(data) - cache.call_tokens
        self._whole = data[None]
        self._slot: tuple[int, tuple[Tensor, Tensor]] = (0, (self._whole, self._whole))
        """Of the last call, and its tokens: the next one has as many, mostly."""

    def extend(self, rows: Tensor) -> Tensor:
        """rows [B, T, D] -> all slots and the call's rows behind them, [1, L, D]."""
        rows = rows.flatten(0, 1)
        self._place(len(rows)).copy_(rows)
        return self._whole

    def unchanged(self) -> Tensor:
        return self._whole

    def slot(self, new: int) -> tuple[Tensor, Tensor] | None:
        if self._slot[0] != new:
            self._slot = new, (self._place(new)[None], self._whole)
        return self._slot[1]

    def _place(self, new: int) -> Tensor:
        return self.data.narrow(0, self._staging, new)


class PagedWindow(PagedTail):
    """A layer's window."""

    def __init__(self, cache: PagedCache, data: Tensor, packing: Packing | None) -> None:
        super().__init__(cache, data)
        self.packing = packing
        self._slots = data.narrow(0, 0, self._staging - cache.shape.slots["window"].rows)
        self._held = -1, data

    def extend(self, rows: Tensor) -> Tensor:
        """rows [B, T, D] -> the windows of each row's sequences, one after the other, [B, L, D]."""
        wanted = self.cache.running.window_rows
        if self.packing is None:
            windows = super().extend(rows)[0].index_select(0, wanted)
        else:
            super().extend(self.packing.pack(rows))
            windows = self.packing.unpack(self.data, wanted)
        return windows.unflatten(0, (len(rows), -1))

    def slot(self, new: int) -> tuple[Tensor, Tensor] | None:
        call = self.cache.running
        if len(call.spans) > 1 or self.packing is not None:
            return None
        rows = call.held_rows
        held = len(rows)
        if self._slot[0] != new or self._held[0] != held:
            start = self._staging - held
            self._held = held, self.data.narrow(0, start, held)
            self._slot = new, (self._place(new)[None], self.data.narrow(0, start, held + new)[None])
        torch.index_select(self._slots, 0, rows, out=self._held[1])
        return self._slot[1]


class PagedEntries:
    """A layer's compressed entries or index keys.  Packed rows are decoded when they are read."""

    def __init__(self, cache: PagedCache, data: Tensor, ratio: int, packing: Packing | None) -> None:
        self.cache = cache
        self.data = data
        self.ratio = ratio
        self.packing = packing
        self._whole = data[None]

    def extend(self, rows: Tensor) -> Tensor:
        """rows [B, S, D] -> the whole pool, [1, L, D] or as it is packed."""
        new = rows.flatten(0, 1)
        if self.packing is not None:
            new = self.packing.pack(new)
        self.data.index_copy_(0, self.cache.running.written(self.ratio), new)
        return self._whole

    def unchanged(self) -> Tensor:
        return self._whole

    def slot(self, new: int) -> None:
        return None

    def in_order(self, buffer: Tensor) -> Tensor:
        rows = self.cache.running.stored(self.ratio)
        return self._read(rows.flatten()).unflatten(0, tuple(rows.shape))

    def seen(self, buffer: Tensor | None, chosen: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if self.packing is None:
            return buffer, chosen
        if chosen is None:  # none is complete
            return None, None
        layout = self.cache.running
        rows = layout.stored(self.ratio).flatten()
        if isinstance(layout, FixedLayout) or chosen.numel() <= 2 * len(rows):
            rows = chosen.flatten().clamp_min(0)
            numbers = torch.arange(len(rows), device=rows.device).view_as(chosen)
        else:  # many tokens choose from the same ones
            numbers = layout.numbers(self.ratio, len(self.data))[chosen.clamp_min(0)]
        return self._read(rows)[None], numbers.where(chosen >= 0, -1)

    def _read(self, rows: Tensor) -> Tensor:
        if self.packing is None:
            return self.data.index_select(0, rows)
        return self.packing.unpack(self.data, rows)
