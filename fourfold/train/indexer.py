"""The indexers' own loss: choosing passes no gradient, so they learn to predict where attention goes.

For each query of a CSA layer, KL(attention over the compressed entries, summed over heads and normalised ||
softmax of the indexer's scores), over the entries the query may see. Nothing else of the model learns from
it: the indexer reads its inputs detached.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fourfold import kernels
from fourfold.model.batch import ForwardBatch
from fourfold.model.indexer import Indexer


class IndexerLoss:
    """Collects the loss of every CSA layer while the model runs forward.

    Attached to the indexers, which run before their layer's attention, and told of the attention's weights by
    `seen` (see `Fused.watch`).
    """

    def __init__(self, model: nn.Module) -> None:
        self.active = False
        self._scores: tuple[Tensor, Tensor] | None = None
        self._losses: list[Tensor] = []
        for module in model.modules():
            if isinstance(module, Indexer):
                module.register_forward_pre_hook(self._before)

    def start(self) -> None:
        """Collect during the forward pass that follows."""
        self.active = True
        self._losses = []

    def take(self) -> Tensor | None:
        """Mean over the layers, or None where no layer had anything to choose from; stops collecting."""
        self.active = False
        losses, self._losses = self._losses, []
        return torch.stack(losses).mean() if losses else None

    @contextmanager
    def apart(self, active: bool) -> Iterator[list[Tensor]]:
        """Collect, if `active`, into the list given and not for `take`."""
        before = self.active, self._losses, self._scores
        self.active, self._losses, self._scores = active, [], None
        try:
            yield self._losses
        finally:
            self.active, self._losses, self._scores = before

    def add(self, losses: list[Tensor]) -> None:
        """Take in what was collected apart."""
        self._losses += losses

    def _before(self, indexer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not self.active:
            return
        assert isinstance(indexer, Indexer)
        x, qr, batch = inputs[0].detach(), inputs[1].detach(), inputs[3]
        assert isinstance(batch, ForwardBatch)
        if not batch.layout.completed(indexer.ratio):
            return
        rows = kernels.compressor_inputs(
            x, indexer.compressor.weights, batch.layout.positions, indexer.numerics.rounding
        )
        keys = kernels.hadamard(indexer.compressor(rows, batch))
        q, weights = indexer.queries(x, qr, batch)
        match = torch.einsum("bthc,bsc->bths", q.float(), keys.float()).relu()
        scores = torch.einsum("bths,bth->bts", match.float(), weights)
        rows = batch.layout.visible(indexer.ratio)
        position = torch.arange(scores.shape[-1], device=scores.device)
        self._scores = scores, (position >= rows[..., :1]) & (position < rows[..., 1:])

    def seen(self, weights: Tensor, window: int) -> None:
        """weights [B, H, T, window + S...]: attention of the layer whose indexer ran last."""
        if self._scores is None:
            return
        (scores, visible), self._scores = self._scores, None
        target = weights.detach()[..., window : window + scores.shape[-1]].float().sum(1)
        target = target / target.sum(-1, keepdim=True).clamp_min(1e-20)
        # One visible entry is no choice.
        wanted = visible.sum(-1) > 1
        if not wanted.any():
            return
        logp = scores.masked_fill(~visible, float("-inf")).log_softmax(-1)[wanted]
        target, visible = target[wanted], visible[wanted]
        gap = target.clamp_min(1e-20).log() - logp.masked_fill(~visible, 0.0)
        self._losses.append((target * gap).masked_fill(~visible, 0.0).sum(-1).mean())
