"""Where the bytes of each routed expert lie on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fourfold.errors import CheckpointError
from fourfold.weights.load import Item

PAGE = 4096
"""Alignment that O_DIRECT asks for on every usual device."""
_REMEDY = "give the model enough RAM to hold them all"
_ORDER = ("w1.weight", "w1.scale", "w3.weight", "w3.scale", "w2.weight", "w2.scale")


@dataclass(frozen=True)
class Part:
    """One stored tensor of an expert, `w1.scale` for one, as it is in memory."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class ExpertTable:
    """The experts of all layers, numbered layer·E + expert.

    layers: the modules that own them, `layers.0.ffn.experts`; each has `per_layer` experts.  Part p of expert
    n is in files[file[n, p]] from byte offset[n, p] (int64).
    """

    layers: tuple[str, ...]
    per_layer: int
    parts: tuple[Part, ...]
    files: tuple[Path, ...]
    file: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]

    @property
    def experts(self) -> int:
        """Of all layers."""
        return len(self.layers) * self.per_layer

    @cached_property
    def expert_bytes(self) -> int:
        """Of one expert in memory."""
        return sum(part.nbytes for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Of all experts."""
        return self.experts * self.expert_bytes

    def name(self, expert: int) -> str:
        """For messages: `layers.3.ffn.experts.7`."""
        return f"{self.layers[expert // self.per_layer]}.{expert % self.per_layer}"

    @classmethod
    def of_checkpoint(cls, items: Iterable[Item], per_layer: int) -> ExpertTable:
        """The experts as the safetensors files hold them.

        CheckpointError: layers differ in how they are stored; slots that serve all layers need one size.
        """
        layers: dict[str, dict[str, list[Item]]] = {}
        for item in items:
            if item.expert is not None:
                block, _, name = item.parameter.rpartition(".experts.")
                layers.setdefault(f"{block}.experts", {}).setdefault(name, []).append(item)
        first = next(iter(layers.values()))
        parts = tuple(
            Part(name, first[name][0].dtype, first[name][0].shape) for name in _ORDER if name in first
        )
        files = sorted({item.stored.file for layer in layers.values() for i in layer.values() for item in i})
        number = {file: n for n, file in enumerate(files)}
        file, offset = (np.zeros((len(layers) * per_layer, len(parts)), dtype=np.int64) for _ in range(2))
        for base, (owner, stored) in enumerate(layers.items()):
            for p, part in enumerate(parts):
                for item in _alike(owner, part, stored.get(part.name, [])):
                    assert item.expert is not None
                    file[base * per_layer + item.expert, p] = number[item.stored.file]
                    offset[base * per_layer + item.expert, p] = item.stored.start
        return cls(tuple(layers), per_layer, parts, tuple(files), file, offset)


def _alike(layer: str, part: Part, items: Sequence[Item]) -> Sequence[Item]:
    for item in items:
        if (item.dtype, item.shape) != (part.dtype, part.shape):
            raise CheckpointError(
                f"{item.stored}: stored as {item.dtype} {list(item.shape)}, other layers as {part.dtype} "
                f"{list(part.shape)}; experts that are read when needed must be alike: {_REMEDY}"
            )
    if not items:
        raise CheckpointError(
            f"{layer}: its experts have no {part.name}, those of other layers have; experts that are read "
            f"when needed must be alike: {_REMEDY}"
        )
    return items
