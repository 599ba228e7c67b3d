"""The slots in RAM: one stack of S rows for each part of an expert, shared by all layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fourfold.tiers.reader import Bytes, aligned_bytes
from fourfold.tiers.table import Part


class SlotPool:
    """stacks: part name -> [S, ...] as `kernels.experts` takes it.  Rows are page-aligned where the size of
    a part allows.  Memory is taken when a slot is first filled.
    """

    def __init__(self, parts: Sequence[Part], slots: int) -> None:
        self._bytes = [aligned_bytes(slots * part.nbytes).reshape(slots, part.nbytes) for part in parts]
        self.stacks: dict[str, Tensor] = {
            part.name: torch.from_numpy(memory).view(part.dtype).view(slots, *part.shape)
            for part, memory in zip(parts, self._bytes, strict=True)
        }

    def row(self, slot: int) -> list[Bytes]:
        """The bytes of one slot, part by part."""
        return [memory[slot] for memory in self._bytes]
