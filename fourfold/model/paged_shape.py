"""What a model keeps of a sequence, and how many bytes that is: rows in slots and rows in blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.kernels.formats import row_bytes
from fourfold.model.numerics import Numerics

BLOCK_TOKENS = 128
"""Tokens of a block; more where that is no whole number of entries of every kind.  V4 report 3.6."""


@dataclass(frozen=True)
class Packing:
    """How rows of `width` values are stored: the `last` in bf16, the others of 8 or 4 bits with scales."""

    width: int
    last: int
    bits: int

    def pack(self, rows: Tensor) -> Tensor:
        """[n, width] -> [n, bytes] uint8."""
        return kernels.pack_rows(rows, self.last, self.bits)

    def unpack(self, packed: Tensor, rows: Tensor) -> Tensor:
        """Some rows of [L, bytes] -> [n, width] bf16."""
        return kernels.unpack_rows(packed, rows, self.width, self.last, self.bits)


@dataclass(frozen=True)
class Stream:
    """Rows of one width and type that some layers keep: `rows` of each layer in one slot, or in one block.

    packing: of rows that are stored as bytes.
    """

    layers: tuple[int, ...]
    rows: int
    width: int
    dtype: torch.dtype
    packing: Packing | None = None

    @property
    def row_bytes(self) -> int:
        """One row of every layer."""
        return len(self.layers) * self.width * self.dtype.itemsize


@dataclass(frozen=True)
class Shape:
    """slots: the window and the compressors' pending inputs; blocks: entries and index keys.

    Names: "window"; "csa tail", "csa entries", "csa index tail", "csa index entries"; "hca tail" and "hca
    entries".
    """

    block_tokens: int
    slots: Mapping[str, Stream]
    blocks: Mapping[str, Stream]

    @classmethod
    def of(cls, config: ModelConfig, numerics: Numerics) -> Shape:
        """Of this model with these numerics."""
        dtype = numerics.kv_dtype or numerics.dtype

        def kv(layers: tuple[int, ...], rows: int, width: int, last: int, bits: int) -> Stream:
            if not numerics.packed:
                return Stream(layers, rows, width, dtype)
            return Stream(layers, rows, row_bytes(width, last, bits), torch.uint8, Packing(width, last, bits))

        entry = config.head_dim, config.qk_rope_head_dim, 8
        ratios = {k: r for k, r in zip(config.layer_kinds, config.layer_ratios, strict=True) if r}
        block_tokens = math.lcm(BLOCK_TOKENS, *ratios.values())
        every = tuple(range(config.num_hidden_layers))
        slots = {"window": kv(every, max(1, config.sliding_window - 1), *entry)}
        blocks = {}
        for kind, ratio in ratios.items():
            layers = tuple(i for i in every if config.layer_kinds[i] == kind)
            # A CSA block overlaps the one before it, and each has channels of its own for that.
            halves = 2 if kind == "csa" else 1
            kept = {f"{kind} ": entry}
            if kind == "csa":
                kept["csa index "] = config.index_head_dim, 0, 4
            for name, (width, last, bits) in kept.items():
                slots[f"{name}tail"] = Stream(layers, halves * ratio, 2 * halves * width, torch.float32)
                blocks[f"{name}entries"] = kv(layers, block_tokens // ratio, width, last, bits)
        return cls(block_tokens, slots, blocks)

    def with_longer_window(self, rows: int) -> Shape:
        """The same with so many more rows of the window."""
        window = self.slots["window"]
        return replace(self, slots={**self.slots, "window": replace(window, rows=window.rows + rows)})

    @property
    def slot_bytes(self) -> int:
        """One sequence's window and pending inputs."""
        return sum(stream.rows * stream.row_bytes for stream in self.slots.values())

    @property
    def block_bytes(self) -> int:
        """Entries and index keys of `block_tokens` tokens."""
        return sum(stream.rows * stream.row_bytes for stream in self.blocks.values())

    @property
    def staged_bytes(self) -> int:
        """What a token of the running call needs until it is done."""
        return sum(stream.row_bytes for stream in self.slots.values())
