"""Sinkhorn normalisation with its derivative written out, for training.

Twenty iterations on tokens x 4 x 4 numbers are hundreds of tiny operations for autograd. Here the tokens lie
innermost, so every operation runs over long rows, and the way back needs three of them per division.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Sinkhorn(torch.autograd.Function):
    """logits [..., n, n] f32 -> the same, scaled towards doubly stochastic, as `kernels.reference` does."""

    @staticmethod
    def forward(ctx, logits: Tensor, iters: int, eps: float) -> Tensor:  # type: ignore[no-untyped-def]
        n = logits.shape[-1]
        first = logits.reshape(-1, n, n).permute(1, 2, 0).contiguous().softmax(dim=1)
        m = first + eps
        steps: list[tuple[int, Tensor, Tensor]] = []
        for i in range(2 * iters - 1):
            # Columns first and last: dim 0 holds the rows' index, so summing over it gives column sums.
            dim = i % 2
            inverse = (m.sum(dim, keepdim=True) + eps).reciprocal_()
            m = m * inverse
            steps.append((dim, m, inverse))
        ctx.first, ctx.steps, ctx.shape = first, steps, logits.shape
        return m.permute(2, 0, 1).reshape(logits.shape)

    @staticmethod
    def backward(ctx, upstream: Tensor):  # type: ignore[no-untyped-def]
        n = ctx.shape[-1]
        grad = upstream.reshape(-1, n, n).permute(1, 2, 0).contiguous()
        for dim, m, inverse in reversed(ctx.steps):
            # y = x r with r = 1 / (sum x + eps):  dx = r (dy - sum(dy y))
            grad = (grad - (grad * m).sum(dim, keepdim=True)).mul_(inverse)
        first = ctx.first
        grad = first * (grad - (grad * first).sum(1, keepdim=True))
        return grad.permute(2, 0, 1).reshape(ctx.shape), None, None
