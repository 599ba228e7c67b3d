"""Guessing which experts a layer will choose before its attention has run."""

from __future__ import annotations

import torch
from torch import Tensor

from fourfold import kernels
from fourfold.model.block import Block


@torch.no_grad()
def predicted(block: Block, streams: Tensor) -> Tensor:
    """The experts that the block's own gate would choose if its attention changed nothing.

    streams [B, T, n, D], the block's input -> [B·T, K] int64.  On the shipped model it names 78 % of the
    experts that are chosen then; the gate on the previous layer's input names 70 %, chance 25 %
    (docs/tiers.md).
    """
    config = block.config
    u, _, _ = kernels.hc_pre(
        streams,
        block.hc_ffn_fn,
        block.hc_ffn_scale,
        block.hc_ffn_base,
        iters=config.hc_sinkhorn_iters,
        norm_eps=config.rms_norm_eps,
        eps=config.hc_eps,
    )
    gate = block.ffn.gate
    assert gate.bias is not None
    x = block.ffn_norm(u).flatten(0, 1)
    indices, _, _ = kernels.route_topk(x, gate.weight, gate.bias, gate.k, gate.scaling)
    return indices
