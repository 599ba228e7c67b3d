"""Every operation of the contract in plain torch: the truth that each chip's kernels are tested against.

Signatures, shapes and equations stand in `fourfold.kernels`.  Everything here is differentiable, bounded in
memory (large products are cut into blocks) and free of any device's own functions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.kernels import composed
from fourfold.kernels.attention_reference import index_topk, sparse_attention
from fourfold.kernels.formats import (
    Rounding,
    channel_scale,
    decode,
    integer_codes,
    is_integer,
    pack_rows,
    round_fp4,
    round_fp8,
    round_input,
    row_slabs,
    to_int8,
    unpack_rows,
)

__all__ = [
    "attention",
    "attention_inputs",
    "block",
    "compressor_entries",
    "compressor_inputs",
    "experts",
    "grouped_linear",
    "hadamard",
    "hc_head",
    "hc_input",
    "hc_moe",
    "hc_next",
    "hc_post",
    "hc_pre",
    "index_queries",
    "index_topk",
    "linear",
    "moe",
    "pack_rows",
    "pool",
    "rms_norm",
    "rope",
    "round_fp4",
    "round_fp8",
    "route_hash",
    "route_topk",
    "shared_expert",
    "sparse_attention",
    "unpack_rows",
]

# 127 · 128 · 1024 < 2^24: so many products of int8 codes add up exactly in float32, in any order.
_EXACT_TERMS = 1024


def linear(x: Tensor, weight: Tensor, scale: Tensor | None, rounding: Rounding = Rounding.NONE) -> Tensor:
    if weight.dtype == torch.float32:
        return F.linear(round_input(x, rounding).to(torch.float32), weight).to(x.dtype)
    slabs = row_slabs(weight, scale)
    if rounding is Rounding.INT8 and is_integer(weight, scale):
        codes, amplitude = to_int8(x)
        parts = [_integer_product(codes, *slab) for slab in slabs]
        return (torch.cat(parts, dim=-1) * amplitude).to(x.dtype)
    y = round_input(x, rounding).to(torch.float32)
    parts = [F.linear(y, decode(*slab)) for slab in slabs]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).to(x.dtype)


def _integer_product(codes: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """codes · Wᵀ with sums in int32, as integer matrix units make them, times the channels' scales."""
    assert scale is not None
    w = integer_codes(weight).to(torch.float32)
    parts = zip(codes.split(_EXACT_TERMS, -1), w.split(_EXACT_TERMS, -1), strict=True)
    sums = sum(F.linear(a, b).to(torch.int32) for a, b in parts)
    assert isinstance(sums, Tensor)
    return sums.to(torch.float32) * channel_scale(scale)


def grouped_linear(
    x: Tensor, weight: Tensor, scale: Tensor | None, groups: int, rounding: Rounding = Rounding.NONE
) -> Tensor:
    if is_integer(weight, scale):
        assert scale is not None
        matrices = zip(x.unbind(-2), weight.chunk(groups), scale.chunk(groups), strict=True)
        return torch.stack([linear(*group, rounding) for group in matrices], dim=-2)
    decoded = decode(weight, scale).unflatten(0, (groups, -1))
    y = round_input(x, rounding).to(decoded.dtype)
    return torch.einsum("...gi,goi->...go", y, decoded).to(x.dtype)


def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """silu(min(gate, L)) · clamp(up, -L, L) in float32.  [..., I] twice -> [..., I] f32.  V4 report 2.1."""
    return F.silu(gate.float().clamp(max=limit)) * up.float().clamp(-limit, limit)


def experts(
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
    return experts_by(linear, x, indices, weights, w1, s1, w3, s3, w2, s2, limit, rounding, places, out)


def experts_by(
    linear: Callable[..., Tensor],
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
    rounding: Rounding,
    places: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    """`experts` with the products of `linear`, a chip's own for one."""
    x = x.float()
    # Sorted by expert, so that each chosen expert is decoded once and every token adds in the same order.
    order = torch.argsort(indices.flatten(), stable=True)
    chosen = indices.flatten()[order]
    tokens = order // indices.shape[1]
    amounts = weights.flatten()[order].unsqueeze(-1)
    y = torch.zeros_like(x) if out is None else out
    begin = 0
    for expert, count in zip(
        *(v.tolist() for v in chosen.unique_consecutive(return_counts=True)), strict=True
    ):
        part = slice(begin, begin + count)
        begin += count
        if places is not None:
            expert = int(places[expert])
            if expert < 0:
                continue
        rows = x[tokens[part]]
        gate = linear(rows, w1[expert], None if s1 is None else s1[expert], rounding)
        up = linear(rows, w3[expert], None if s3 is None else s3[expert], rounding)
        inner = swiglu(gate, up, limit) * amounts[part]
        result = linear(inner, w2[expert], None if s2 is None else s2[expert], rounding)
        y = y.index_add(0, tokens[part], result) if out is None else y.index_add_(0, tokens[part], result)
    return y


def _scores(x: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return F.softplus(F.linear(x.float(), weight.float())).sqrt()


def _weigh(scores: Tensor, indices: Tensor, scaling: float) -> Tensor:
    chosen = scores.gather(-1, indices)
    return chosen / chosen.sum(-1, keepdim=True) * scaling


def route_topk(
    x: Tensor, weight: Tensor, bias: Tensor, k: int, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    scores = _scores(x, weight)
    # A stable sort instead of topk: ties go to the lower expert on every device and in every batch.
    indices = (scores + bias).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return indices, _weigh(scores, indices, scaling), scores


def route_hash(x: Tensor, weight: Tensor, chosen: Tensor, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
    scores = _scores(x, weight)
    return chosen, _weigh(scores, chosen, scaling), scores


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight.float()).to(x.dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
    width = 2 * cos.shape[-1]
    if x.dim() == cos.dim() + 1:
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    if inverse:
        sin = -sin
    still, turned = x[..., :-width], x[..., -width:].float()
    even, odd = turned[..., 0::2], turned[..., 1::2]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return torch.cat([still, turned.to(x.dtype)], dim=-1)


def pool(values: Tensor, scores: Tensor) -> Tensor:
    return (values * scores.softmax(dim=-2)).sum(dim=-2)


def hadamard(x: Tensor) -> Tensor:
    n = x.shape[-1]
    y = x.float()
    # Sylvester order by butterflies: H_2n = [[H_n, H_n], [H_n, -H_n]].
    for half in (1 << i for i in range(n.bit_length() - 1)):
        left, right = y.unflatten(-1, (-1, 2, half)).unbind(-2)
        y = torch.stack([left + right, left - right], dim=-2).flatten(-3)
    return (y * n**-0.5).to(x.dtype)


def hc_pre(
    streams: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    *,
    iters: int,
    norm_eps: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    n = streams.shape[-2]
    mix = hc_mix(streams, fn, norm_eps)
    pre = torch.sigmoid(mix[..., :n] * scale[0] + base[:n]) + eps
    post = 2 * torch.sigmoid(mix[..., n : 2 * n] * scale[1] + base[n : 2 * n])
    comb = (mix[..., 2 * n :] * scale[2] + base[2 * n :]).unflatten(-1, (n, n))
    comb = _sinkhorn(comb, iters, eps)
    return weighted_sum(pre, streams), post, comb


def _sinkhorn(logits: Tensor, iters: int, eps: float) -> Tensor:
    # eps after the softmax and inside every division: the published model was trained so.
    m = logits.softmax(dim=-1) + eps
    m = m / (m.sum(dim=-2, keepdim=True) + eps)
    for _ in range(iters - 1):
        m = m / (m.sum(dim=-1, keepdim=True) + eps)
        m = m / (m.sum(dim=-2, keepdim=True) + eps)
    return m


def hc_mix(streams: Tensor, fn: Tensor, norm_eps: float) -> Tensor:
    """fn · flatten(X) / rms(flatten(X)): [..., n, D] -> [..., (2+n)n] f32.  V4 report 2.2."""
    flat = streams.flatten(-2).float()
    with torch.autocast(streams.device.type, enabled=False):
        return F.linear(flat, fn) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + norm_eps)


def weighted_sum(pre: Tensor, streams: Tensor) -> Tensor:
    """Σ_j pre[j]·X[j]: [..., n] and [..., n, D] -> [..., D] in the dtype of streams."""
    return (pre.unsqueeze(-1) * streams.float()).sum(dim=-2).to(streams.dtype)


def hc_post(output: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    with torch.autocast(streams.device.type, enabled=False):
        mixed = comb.transpose(-1, -2) @ streams.float()
    return (post.unsqueeze(-1) * output.float().unsqueeze(-2) + mixed).to(streams.dtype)


def hc_head(
    streams: Tensor, fn: Tensor, scale: Tensor, base: Tensor, *, norm_eps: float, eps: float
) -> Tensor:
    pre = torch.sigmoid(hc_mix(streams, fn, norm_eps) * scale + base) + eps
    return weighted_sum(pre, streams)


_PARTS = sys.modules[__name__]
attention_inputs = partial(composed.attention_inputs, _PARTS)
attention = partial(composed.attention, _PARTS)
compressor_inputs = partial(composed.compressor_inputs, _PARTS)
compressor_entries = partial(composed.compressor_entries, _PARTS)
index_queries = partial(composed.index_queries, _PARTS)
hc_input = partial(composed.hc_input, _PARTS)
hc_next = partial(composed.hc_next, _PARTS)
shared_expert = partial(composed.shared_expert, _PARTS)
moe = partial(composed.moe, _PARTS)
hc_moe = partial(composed.hc_moe, _PARTS)
block = partial(composed.block, _PARTS)
