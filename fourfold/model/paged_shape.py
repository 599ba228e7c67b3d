"""What a model keeps of a sequence, and how many bytes that is: rows in slots and rows in blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from fourfold.config import ModelConfig
from fourfold.model.numerics import Numerics

BLOCK_TOKENS = 128
"""Tokens of a block; more where that is no whole number of entries of every kind.  V4 report 3.6."""


@dataclass(frozen=True)
class Stream:
    """Rows of one width and type that some layers keep: `rows` of each layer in one slot, or in one block."""

    layers: tuple[int, ...]
    rows: int
    width: int
    dtype: torch.dtype

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
        kv = numerics.kv_dtype or numerics.dtype
        ratios = {k: r for k, r in zip(config.layer_kinds, config.layer_ratios, strict=True) if r}
        block_tokens = math.lcm(BLOCK_TOKENS, *ratios.values())
        every = tuple(range(config.num_hidden_layers))
        slots = {"window": Stream(every, max(1, config.sliding_window - 1), config.head_dim, kv)}
        blocks = {}
        for kind, ratio in ratios.items():
            layers = tuple(i for i in every if config.layer_kinds[i] == kind)
            # A CSA block overlaps the one before it, and each has channels of its own for that.
            halves = 2 if kind == "csa" else 1
            widths = {f"{kind} ": config.head_dim}
            if kind == "csa":
                widths["csa index "] = config.index_head_dim
            for name, width in widths.items():
                slots[f"{name}tail"] = Stream(layers, halves * ratio, 2 * halves * width, torch.float32)
                blocks[f"{name}entries"] = Stream(layers, block_tokens // ratio, width, kv)
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
