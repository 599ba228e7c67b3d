"""Experts on two sides: some of each layer in the device's memory, the others in the host's or on disk.

Which lie where is fixed when the model is loaded, so that what a token gets depends on nothing else.  A layer
sends the host what its experts need, starts the device's, which run by themselves, and computes the host's
meanwhile with the host's own kernels.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fourfold.kernels.composed import ExpertWeights
from fourfold.model.experts import Asked, ExpertSource
from fourfold.model.moe import Experts, Gate
from fourfold.model.transformer import Transformer
from fourfold.tiers.counts import Counts
from fourfold.tiers.table import ExpertTable
from fourfold.weights.load import Item


@dataclass(frozen=True)
class OnDevice:
    """held [layers, E]: the experts that lie on the device, of each layer as many."""

    held: npt.NDArray[np.bool_]
    device: torch.device

    def share(self, uses: Counts) -> float:
        """Of the uses [layers, E], those of experts on the device."""
        return float(uses[self.held].sum() / uses.sum())

    def rows(self, layer: int) -> Tensor:
        """Of a layer's stacks, the row that holds each expert, -1 for the others.  [E] int64"""
        held = self.held[layer]
        rows = np.where(held, held.cumsum() - 1, -1)
        return torch.from_numpy(rows).to(self.device)


def busiest(model: Transformer, table: ExpertTable, count: int, uses: Counts) -> OnDevice:
    """The `count` experts of each layer that belong on the device of `model`, whose dense weights are there.

    They are those with the most `uses`.  Of equals, as all are before anything was counted, in layers that
    are routed by token id those that most ids name; in others the first ones.
    """
    held = np.zeros((len(table.layers), table.per_layer), dtype=bool)
    for layer, name in enumerate(table.layers):
        gate = model.get_submodule(name.removesuffix("experts") + "gate")
        assert isinstance(gate, Gate)
        # Its other gates have no table.
        ids = gate.tid2eid.flatten().tolist() if gate.hashed and gate.tid2eid is not None else []
        named = np.bincount(np.array(ids, dtype=np.int64), minlength=table.per_layer)
        held[layer, np.lexsort((-named, -uses[layer]))[:count]] = True
    return OnDevice(held, model.device)


def held_items(items: Sequence[Item], table: ExpertTable, where: OnDevice) -> list[Item]:
    """The stored tensors of the experts on the device, numbered by their rows there."""
    found = []
    for item in items:
        if item.expert is not None:
            layer = table.layers.index(item.parameter.rpartition(".experts.")[0] + ".experts")
            if where.held[layer, item.expert]:
                row = int(where.held[layer, : item.expert].sum())
                found.append(dataclasses.replace(item, expert=row))
    return found


class SplitLayer:
    """The expert source of a layer whose stacks hold the experts of `rows`; `host` has the others in
    `stacks`."""

    def __init__(
        self, experts: Experts, host: ExpertSource, rows: Tensor, stacks: Mapping[str, Tensor]
    ) -> None:
        self._experts = weakref.proxy(experts)
        self._host = host
        self._rows = rows
        self._any = bool((rows >= 0).any())
        self._stacks = _weights(stacks)

    def expect(self, streams: Tensor, ids: Tensor) -> None:
        """As the host's."""
        self._host.expect(streams, ids)

    def chosen(self, asked: Asked) -> Asked:
        """Copies for the host, whose reads begin; the stacks' own rows for the device."""
        # Copied now: later the copy would wait for all that the device has been given meanwhile.
        others = self._host.chosen(Asked(asked.x.cpu(), asked.indices.cpu(), asked.weights.cpu()))
        rows = self._rows[asked.indices]
        return Asked(asked.x, rows.clamp_min(0), asked.weights.where(rows >= 0, 0.0), others)

    def passes(self, indices: Tensor) -> Iterator[None]:
        """One part, what the stacks hold, unless they hold nothing."""
        if self._any:
            yield None

    def elsewhere(self, others: Asked) -> Tensor | None:
        """The host's experts, while the device computes its own."""
        y = self._experts.added(others, self._stacks, self._host.passes(others.indices))
        return None if y is None else y.to(self._rows.device)


def _weights(stacks: Mapping[str, Tensor]) -> ExpertWeights:
    w1, w3, w2 = ((stacks[f"{w}.weight"], stacks.get(f"{w}.scale")) for w in ("w1", "w3", "w2"))
    return w1, w3, w2
