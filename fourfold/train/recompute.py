"""Blocks that keep their input alone and compute themselves again in the backward pass.

What a block leaves beside its output, the routing and the indexer's loss, becomes an output here: the second
pass must leave nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fourfold import kernels
from fourfold.model.batch import ForwardBatch, Routing
from fourfold.model.memory import LayerMemory
from fourfold.model.transformer import Transformer
from fourfold.train.indexer import IndexerLoss

Operations = Mapping[str, Callable[..., Any]]


def recompute_blocks(model: Transformer, indexers: IndexerLoss, operations: Callable[[], Operations]) -> None:
    """From now on no block of `model` keeps activations while gradients are wanted.

    operations: those of the step under way, as the second pass runs outside of `kernels.replaced`.
    """
    for block in model.layers:
        block.forward = partial(_forward, block.forward, indexers, operations)


def _forward(
    forward: Callable[[Tensor, ForwardBatch, LayerMemory], Tensor],
    indexers: IndexerLoss,
    operations: Callable[[], Operations],
    streams: Tensor,
    batch: ForwardBatch,
    memory: LayerMemory,
) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(streams, batch, memory)
    active, used = indexers.active, operations()

    def run(streams: Tensor) -> tuple[Tensor, list[Routing], list[Tensor]]:
        own = copy(batch)
        own.routing = []
        with kernels.replaced(streams.device.type, used), indexers.apart(active) as losses:
            return forward(streams, own, memory), own.routing, losses

    # Random numbers are used nowhere in a block, and saving their generators costs time.
    output, routing, losses = checkpoint(run, streams, use_reentrant=False, preserve_rng_state=False)
    batch.routing += routing
    indexers.add(losses)
    return output
