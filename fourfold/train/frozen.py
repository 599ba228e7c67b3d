"""Products with stored weights that are not trained: gradients flow through them to their inputs.

The weights stay packed.  Forward they are what the chip's own kernels read; backward a slab of rows at a time
is decoded, multiplied and forgotten: grad_x = grad_y · W = Σ_slabs grad_y[:, slab] · decode(W[slab]).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.kernels.composed import ExpertWeights, shared_expert
from fourfold.kernels.formats import Rounding, decode, row_slabs
from fourfold.kernels.reference import swiglu
from fourfold.kernels.registry import impl
from fourfold.model.adapters import visit_experts
from fourfold.train.experts import UNIT

Product = Callable[[Tensor], Tensor]


class _Frozen(torch.autograd.Function):
    """y = forward(x), whose derivative is `backward`, linear both."""

    @staticmethod
    def forward(ctx, x: Tensor, forward: Product, backward: Product) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.back, ctx.dtype = backward, x.dtype
        return forward(x)

    @staticmethod
    def backward(ctx, upstream: Tensor):  # type: ignore[no-untyped-def]
        return ctx.back(upstream).to(ctx.dtype), None, None


class FrozenProducts:
    """`kernels.linear`, `grouped_linear` and `experts` where base weights are stored and frozen, and those
    that require a gradient, an adapter's, are plain matrices.

    dtype: of the products, float32 or bfloat16; sums are float32 or as torch has them.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        anything = torch.empty(0, device=device)
        self._linear, self._grouped = impl("linear", anything), impl("grouped_linear", anything)
        self._dtype = dtype
        self._rounding = Rounding.NONE if dtype == torch.float32 else Rounding.BF16
        self.operations: dict[str, Callable[..., Any]] = {
            "linear": self.linear,
            "grouped_linear": self.grouped_linear,
            "experts": self.experts,
            "shared_expert": partial(shared_expert, self),
        }

    def linear(
        self, x: Tensor, weight: Tensor, scale: Tensor | None, rounding: Rounding = Rounding.NONE
    ) -> Tensor:
        """As the contract; `rounding` is that of the training's dtype."""
        if weight.requires_grad:
            return F.linear(_filled(x), weight)[..., : x.shape[-2], :].to(x.dtype)
        forward = partial(self._linear, weight=weight, scale=scale, rounding=self._rounding)
        y: Tensor = _Frozen.apply(x, forward, partial(self._back, weight, scale))  # type: ignore[no-untyped-call]
        return y

    def grouped_linear(
        self, x: Tensor, weight: Tensor, scale: Tensor | None, groups: int, rounding: Rounding = Rounding.NONE
    ) -> Tensor:
        """As the contract."""
        if weight.requires_grad:
            parts = [F.linear(x[..., g, :], w) for g, w in enumerate(weight.chunk(groups))]
            return torch.stack(parts, dim=-2).to(x.dtype)
        forward = partial(self._grouped, weight=weight, scale=scale, groups=groups, rounding=self._rounding)
        backward = partial(self._grouped_back, weight, scale, groups)
        y: Tensor = _Frozen.apply(x, forward, backward)  # type: ignore[no-untyped-call]
        return y

    def experts(
        self,
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
        places: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """As the contract."""
        stacks: ExpertWeights = (w1, s1), (w3, s3), (w2, s2)
        none = (None, None, None)
        return visit_experts(x, indices, weights, stacks, none, limit, rounding, places, out, gated=swiglu)

    def _back(self, weight: Tensor, scale: Tensor | None, upstream: Tensor) -> Tensor:
        """grad_y [..., O] -> grad_x [..., I]."""
        with torch.autocast(upstream.device.type, enabled=False):
            count = upstream.shape[-2]
            grad = _filled(upstream.to(self._dtype))
            total, start = torch.zeros((), device=grad.device), 0
            for slab in row_slabs(weight, scale):
                rows = decode(*slab).to(self._dtype)
                part = grad[..., start : start + len(rows)] @ rows
                total = part if start == 0 else total + part
                start += len(rows)
            return total[..., :count, :]

    def _grouped_back(self, weight: Tensor, scale: Tensor | None, groups: int, upstream: Tensor) -> Tensor:
        """grad_y [..., G, O] -> grad_x [..., G, I].  The matrix is decoded as a whole: groups may share
        scales."""
        with torch.autocast(upstream.device.type, enabled=False):
            matrices = decode(weight, scale).to(self._dtype).unflatten(0, (groups, -1))
            return torch.einsum("...go,goi->...gi", upstream.to(self._dtype), matrices)


def _filled(x: Tensor) -> Tensor:
    """x; of an expert's rows [N, I] with zeros behind them, up to whole units: see experts.py."""
    return F.pad(x, (0, 0, 0, -len(x) % UNIT)) if x.dim() == 2 and len(x) % UNIT else x
