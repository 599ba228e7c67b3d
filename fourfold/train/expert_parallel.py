"""Routed experts that several ranks have between them: rows go to where their experts are, and come back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fourfold.kernels.formats import Rounding
from fourfold.train.experts import Gated, arrange, by_expert, product_dtype
from fourfold.train.fused import swiglu
from fourfold.train.parallel import Group, ranks

Sizes = list[int]
"""Rows for, or from, each rank."""


def _exchanged(tensor: Tensor, given: Sizes, taken: Sizes, group: Group | None) -> Tensor:
    """given[r] rows to each rank r, taken[r] from it, in the order of the ranks."""
    # As bytes: not every backend knows every type.
    flat = tensor.contiguous().view(len(tensor), -1).view(torch.uint8)
    result = flat.new_empty(sum(taken), flat.shape[1])
    dist.all_to_all_single(result, flat, taken, given, group=group)
    return result.view(tensor.dtype).view(-1, *tensor.shape[1:])


class _Exchange(torch.autograd.Function):
    """`_exchanged` of several tensors; their gradients go back in the same order on every rank."""

    @staticmethod
    def forward(ctx, given: Sizes, taken: Sizes, group: Group | None, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
        ctx.back = taken, given, group
        return tuple(_exchanged(tensor, given, taken, group) for tensor in tensors)

    @staticmethod
    def backward(ctx, *upstream: Tensor) -> Any:  # type: ignore[no-untyped-def]
        return None, None, None, *(_exchanged(gradient, *ctx.back) for gradient in upstream)


def divided_experts(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    w1: Tensor,
    s1: Tensor | None,
    w3: Tensor,
    s3: Tensor | None,
    w2: Tensor,
    s2: Tensor | None,
    limit: float,
    rounding: Rounding = Rounding.NONE,
    places: None = None,
    out: None = None,
    gated: Gated = swiglu,
) -> Tensor:
    """`fused.routed_experts`, where w1, w3 and w2 are this rank's experts alone."""
    world, here = ranks(), w1.shape[0]
    group, chosen = world.replica_group, indices.flatten()
    order = torch.argsort(chosen, stable=True)
    counts = torch.bincount(chosen // here, minlength=world.shards)
    taken = _exchanged(counts, [1] * world.shards, [1] * world.shards, group).tolist()
    given = counts.tolist()
    rows = x.to(product_dtype(x)).index_select(0, order // indices.shape[1])
    mine, amounts = _Exchange.apply(given, taken, group, rows, weights.flatten().index_select(0, order))  # type: ignore[no-untyped-call]
    experts = _exchanged(chosen[order] % here, given, taken, group)
    if len(mine):
        mine = by_expert(mine, amounts, arrange(experts, here), w1, w3, w2, limit, gated)
    (results,) = _Exchange.apply(taken, given, group, mine)  # type: ignore[no-untyped-call]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return results.index_select(0, back).unflatten(0, indices.shape).float().sum(1)
