"""What one forward pass carries beside its activations: the layout, rotary angles, and notes for others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fourfold import kernels
from fourfold.model.layout import Layout
from fourfold.model.paged_fixed import FixedLayout
from fourfold.model.paged_layout import PagedLayout
from fourfold.model.rope import cos_sin


@dataclass(frozen=True)
class Routing:
    """How one score-routed MoE layer spread N tokens.  scores [N, E] f32, indices [N, K] int64."""

    scores: Tensor
    indices: Tensor


@dataclass
class Choices:
    """What a call of one row chose for n of its tokens, for who wants to see it; the layers note it in turn.

    rows [n] int64: places of these tokens in the row.
    experts: of each layer, indices [n, K] int64 and weights [n, K] f32.
    entries: of each CSA layer, numbers [n, k] int64 of the compressed entries that its indexer
    chose, counted from the sequence's first, -1 padded; None: it left none out.
    """

    rows: Tensor
    experts: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    entries: list[Tensor | None] = field(default_factory=list)


class ForwardBatch:
    """One call: where its tokens lie, their ids, and angles shared by all layers of a kind.

    frequencies: [R/2] f32 of sliding-window layers and of compressed layers.  operations: what runs
    the blocks': the contract, or AdaptedOperations where tokens have adapters.  choices: what is to be noted.
    """

    def __init__(
        self,
        layout: Layout | PagedLayout | FixedLayout,
        ids: Tensor,
        frequencies: tuple[Tensor, Tensor],
        operations: Any = kernels,
        choices: Choices | None = None,
    ) -> None:
        self.layout = layout
        self.ids = ids
        self.operations = operations
        self.choices = choices
        self._frequencies = frequencies
        self._angles: dict[object, tuple[Tensor, Tensor]] = {}
        self.routing: list[Routing] = []

    def token_angles(self, compressed: bool) -> tuple[Tensor, Tensor]:
        """cos, sin [B, T, R/2] at the tokens' positions."""
        if compressed not in self._angles:
            self._angles[compressed] = cos_sin(self.layout.positions, self._frequencies[compressed])
        return self._angles[compressed]

    def block_angles(self, ratio: int, overlapping: bool) -> tuple[Tensor, Tensor]:
        """cos, sin [B, S, R/2] at the first token of each block completed in this call."""
        key = (ratio, overlapping)
        if key not in self._angles:
            positions = self.layout.blocks(ratio, overlapping).positions
            self._angles[key] = cos_sin(positions, self._frequencies[True])
        return self._angles[key]
