"""The routed experts for training: both directions written out, one product per expert and matrix.

Autograd would cut, cast and join every expert's rows by itself. Here rows lie sorted by expert in one buffer,
gate and up are one product, weights are cast once, and the way back keeps only what it needs. An expert's
rows are filled up to whole units: oneDNN compiles a product for each shape that it has not seen, which takes
ten times as long as the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

UNIT = 32
"""Rows that an expert's are filled up to a multiple of."""
Gated = Callable[[Tensor, Tensor, float], Tensor]


def product_dtype(x: Tensor) -> torch.dtype:
    """What products of x are computed in: autocast's type where that is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _Sorted(torch.autograd.Function):
    """rows [N', D] sorted by expert, amounts [N', 1] f32 -> w2·(amount · swiglu(w1·row, w3·row)) [N', D]."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        rows: Tensor,
        amounts: Tensor,
        w1: Tensor,
        w3: Tensor,
        w2: Tensor,
        sizes: list[int],
        limit: float,
        gated: Any,
    ) -> Tensor:
        dtype = rows.dtype
        into = torch.cat([w1, w3], dim=1).to(dtype)
        out = w2.to(dtype)
        both = rows.new_zeros(len(rows), into.shape[1])
        for e, part in _parts(sizes):
            torch.mm(rows[part], into[e].mT, out=both[part])
        gate, up = both.chunk(2, dim=-1)
        inner = (gated(gate, up, limit) * amounts).to(dtype)
        result = torch.zeros_like(rows)
        for e, part in _parts(sizes):
            torch.mm(inner[part], out[e].mT, out=result[part])
        ctx.save_for_backward(rows, amounts, into, out, both)
        ctx.sizes, ctx.limit, ctx.gated, ctx.kept = sizes, limit, gated, w1.dtype
        return result

    @staticmethod
    def backward(ctx, upstream: Tensor) -> Any:  # type: ignore[no-untyped-def]
        rows, amounts, into, out, both = ctx.saved_tensors
        back = torch.zeros_like(both[:, : out.shape[2]])
        for e, part in _parts(ctx.sizes):
            torch.mm(upstream[part], out[e], out=back[part])
        with torch.enable_grad():
            gate, up, weighed = (x.detach().requires_grad_() for x in (*both.chunk(2, dim=-1), amounts))
            inner = (ctx.gated(gate, up, ctx.limit) * weighed).to(rows.dtype)
            *halves, grad_amounts = torch.autograd.grad(inner, (gate, up, weighed), back)
        grad_both = torch.cat(halves, dim=-1)
        grad_rows = torch.zeros_like(rows)
        grad_into = torch.zeros(into.shape, dtype=ctx.kept, device=into.device)
        grad_out = torch.zeros(out.shape, dtype=ctx.kept, device=out.device)
        for e, part in _parts(ctx.sizes):
            torch.mm(grad_both[part], into[e], out=grad_rows[part])
            grad_into[e] = grad_both[part].mT @ rows[part]
            grad_out[e] = upstream[part].mT @ inner.detach()[part]
        grad_w1, grad_w3 = grad_into.chunk(2, dim=1)
        return grad_rows, grad_amounts, grad_w1, grad_w3, grad_out, None, None, None


def _parts(sizes: list[int]) -> Iterator[tuple[int, slice]]:
    """Each expert that has rows, and where."""
    begin = 0
    for expert, size in enumerate(sizes):
        if size:
            yield expert, slice(begin, begin + size)
        begin += size


@dataclass(frozen=True)
class Places:
    """Where each expert's rows lie in one buffer of a size that does not depend on the choice.

    sizes: rows of each expert, filled up.  source [S] int64: the choice (token · K + k) that a row is for,
    N' where it is for none.  place [N'] int64: the row of each choice.
    """

    sizes: list[int]
    source: Tensor
    place: Tensor


def arrange(chosen: Tensor, experts: int) -> Places:
    """chosen [N'] int64, the expert of each choice."""
    count = len(chosen)
    sizes = torch.bincount(chosen, minlength=experts)
    filled = (sizes + (UNIT - 1)) // UNIT * UNIT
    shift = (filled.cumsum(0) - filled) - (sizes.cumsum(0) - sizes)
    order = torch.argsort(chosen, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(count, device=chosen.device) + shift[chosen[order]]
    source = torch.full((-(-count // UNIT) * UNIT + experts * UNIT,), count, device=chosen.device)
    source[place] = torch.arange(count, device=chosen.device)
    return Places(filled.tolist(), source, place)


def by_expert(
    rows: Tensor, amounts: Tensor, at: Places, w1: Tensor, w3: Tensor, w2: Tensor, limit: float, gated: Gated
) -> Tensor:
    """What its expert makes of each choice.  rows [N, D]: K = N'/N choices each; amounts [N'] f32; w1, w3
    [E, I, D], w2 [E, D, I]; gated: `fused.swiglu`, compiled or not -> [N', D] in the products' type."""
    low = rows.to(product_dtype(rows))
    count = len(amounts) // max(len(rows), 1)
    taken = low.index_select(0, (at.source // max(count, 1)).clamp(max=len(rows) - 1))
    # Rows that are for no choice weigh nothing, so that they add nothing to a gradient.
    weighed = torch.cat([amounts, amounts.new_zeros(1)]).index_select(0, at.source).unsqueeze(-1)
    result: Tensor = _Sorted.apply(taken, weighed, w1, w3, w2, at.sizes, limit, gated)  # type: ignore[no-untyped-call]
    return result.index_select(0, at.place)
