"""Operations of the contract that are several others in a row, so that a chip may run them in one call.

`ops` is who runs the parts: the contract itself (a chip without its own form), or the reference.  Signatures
and equations stand in joined.py.
"""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from torch import Tensor

from fourfold.kernels.formats import Rounding

Stored = tuple[Tensor, Tensor | None]
"""A weight and its scale."""
ExpertWeights = tuple[Stored, Stored, Stored]
"""w1, w3 and w2, of one expert or of a stack."""
CompressorWeights = tuple[Stored, Stored, Tensor]
"""wkv, wgate and ape."""
StreamEntry = tuple[Tensor, Tensor, Tensor, Tensor]
"""fn, scale and base of mHC, and the weight of the norm after it."""


class StreamMixing(TypedDict):
    """Keyword arguments that the mHC operations have in common."""

    iters: int
    norm_eps: float
    eps: float


InputArguments = tuple[
    StreamEntry,
    Stored,
    Tensor,
    Stored,
    Stored,
    Tensor,
    Tensor,
    Tensor,
    int,
    tuple[Rounding, ...],
    tuple[CompressorWeights, ...],
    Tensor,
    Rounding,
]
"""What `attention_inputs` takes after the streams."""
SeenArguments = tuple[
    Tensor,
    Tensor,
    Tensor | None,
    Tensor | None,
    Tensor | None,
    Tensor,
    float,
    Rounding,
    Tensor,
    Tensor,
    Stored,
    int,
    Stored,
    tuple[Rounding, ...],
]
"""What `attention` takes after the queries."""
IndexArguments = tuple[Stored, Stored, int, Tensor, Tensor, float, tuple[Rounding, ...]]
"""What `index_queries` takes after x and qr."""
MoeArguments = tuple[
    Tensor,
    Tensor | None,
    Tensor | None,
    int,
    float,
    ExpertWeights,
    ExpertWeights,
    float,
    tuple[Rounding, ...],
]
"""What `moe` takes after x."""


def attention_inputs(
    ops: Any,
    streams: Tensor,
    entry: StreamEntry,
    wq_a: Stored,
    q_norm: Tensor,
    wq_b: Stored,
    wkv: Stored,
    kv_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    roundings: tuple[Rounding, ...],
    compressors: tuple[CompressorWeights, ...],
    positions: Tensor,
    to_compressors: Rounding,
    *,
    iters: int,
    norm_eps: float,
    eps: float,
) -> tuple[Tensor, ...]:
    x, post, comb = ops.hc_input(streams, entry, iters=iters, norm_eps=norm_eps, eps=eps)
    qr = ops.rms_norm(ops.linear(x, *wq_a, roundings[0]), q_norm, norm_eps)
    q = ops.linear(qr, *wq_b, roundings[1]).unflatten(-1, (heads, -1))
    q = ops.rope(ops.rms_norm(q, None, norm_eps), cos, sin, inverse=False)
    kv = ops.rms_norm(ops.linear(x, *wkv, roundings[2]), kv_norm, norm_eps)
    rows = [ops.compressor_inputs(x, weights, positions, to_compressors) for weights in compressors]
    return x, post, comb, qr, q, ops.rope(kv, cos, sin, inverse=False), *rows


def attention(
    ops: Any,
    q: Tensor,
    window: Tensor,
    window_range: Tensor,
    entries: Tensor | None,
    entry_range: Tensor | None,
    entry_index: Tensor | None,
    sink: Tensor,
    scale: float,
    rounding: Rounding,
    cos: Tensor,
    sin: Tensor,
    wo_a: Stored,
    groups: int,
    wo_b: Stored,
    roundings: tuple[Rounding, ...],
) -> Tensor:
    o = ops.sparse_attention(
        q, window, window_range, entries, entry_range, entry_index, sink, scale, rounding
    )
    o = ops.rope(o, cos, sin, inverse=True)
    o = ops.grouped_linear(o.flatten(-2).unflatten(-1, (groups, -1)), *wo_a, groups, roundings[0])
    y: Tensor = ops.linear(o.flatten(-2), *wo_b, roundings[1])
    return y


def compressor_inputs(
    ops: Any, x: Tensor, weights: CompressorWeights, positions: Tensor, rounding: Rounding
) -> Tensor:
    wkv, wgate, ape = weights
    x = x.float()
    values = ops.linear(x, *wkv, rounding).float()
    scores = ops.linear(x, *wgate, rounding).float() + ape[positions % ape.shape[0]]
    return torch.cat([values, scores], dim=-1)


def once(x: Tensor) -> Tensor:
    """x [B, ...], or [1, ...] where all B are the same memory: a gather copies what it is given expanded."""
    return x[:1] if x.stride(0) == 0 else x


def compressor_entries(
    ops: Any,
    pending: Tensor,
    tokens: Tensor,
    norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    overlapping: bool,
    eps: float,
) -> Tensor:
    pending = once(pending)
    rows = torch.arange(pending.shape[0], device=tokens.device)[:, None, None]
    values, scores = pending[rows, tokens.clamp_min(0)].chunk(2, dim=-1)
    if overlapping:
        values, scores = _halves(values), _halves(scores)
    scores = scores.masked_fill((tokens < 0).unsqueeze(-1), float("-inf"))
    entries: Tensor = ops.rope(ops.rms_norm(ops.pool(values, scores), norm, eps), cos, sin, inverse=False)
    return entries


def _halves(x: Tensor) -> Tensor:
    """First half of the channels for the block before, second half for the block itself."""
    before, own = x.chunk(2, dim=2)
    width = x.shape[-1] // 2
    return torch.cat([before[..., :width], own[..., width:]], dim=2)


def index_queries(
    ops: Any,
    x: Tensor,
    qr: Tensor,
    wq_b: Stored,
    weights_proj: Stored,
    heads: int,
    cos: Tensor,
    sin: Tensor,
    scale: float,
    roundings: tuple[Rounding, ...],
) -> tuple[Tensor, Tensor]:
    q = ops.linear(qr, *wq_b, roundings[0]).unflatten(-1, (heads, -1))
    weights = ops.linear(x, *weights_proj, roundings[1]).float() * scale
    return ops.hadamard(ops.rope(q, cos, sin, inverse=False)), weights


def hc_input(
    ops: Any, streams: Tensor, entry: StreamEntry, *, iters: int, norm_eps: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    *mixing, norm = entry
    x, post, comb = ops.hc_pre(streams, *mixing, iters=iters, norm_eps=norm_eps, eps=eps)
    return ops.rms_norm(x, norm, norm_eps), post, comb


def hc_next(
    ops: Any,
    output: Tensor,
    streams: Tensor,
    post: Tensor,
    comb: Tensor,
    entry: StreamEntry,
    *,
    iters: int,
    norm_eps: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    streams = ops.hc_post(output, streams, post, comb)
    return streams, *ops.hc_input(streams, entry, iters=iters, norm_eps=norm_eps, eps=eps)


def shared_expert(ops: Any, x: Tensor, weights: ExpertWeights, limit: float, rounding: Rounding) -> Tensor:
    first = torch.zeros(x.shape[0], 1, dtype=torch.int64, device=x.device)
    once = torch.ones(x.shape[0], 1, device=x.device)
    (w1, s1), (w3, s3), (w2, s2) = (
        (weight.unsqueeze(0), None if scale is None else scale.unsqueeze(0)) for weight, scale in weights
    )
    y: Tensor = ops.experts(x, first, once, w1, s1, w3, s3, w2, s2, limit, rounding)
    return y


def moe(
    ops: Any,
    x: Tensor,
    router: Tensor,
    bias: Tensor | None,
    chosen: Tensor | None,
    k: int,
    scaling: float,
    routed: ExpertWeights,
    shared: ExpertWeights,
    limit: float,
    roundings: tuple[Rounding, ...],
) -> Tensor:
    flat = x.flatten(0, -2)
    if chosen is None:
        indices, weights, _ = ops.route_topk(flat, router, bias, k, scaling)
    else:
        indices, weights, _ = ops.route_hash(flat, router, chosen, scaling)
    (w1, s1), (w3, s3), (w2, s2) = routed
    y = ops.experts(flat, indices, weights, w1, s1, w3, s3, w2, s2, limit, roundings[0])
    y = y + ops.shared_expert(flat, shared, limit, roundings[1])
    return y.to(x.dtype).view_as(x)


def hc_moe(
    ops: Any,
    output: Tensor,
    streams: Tensor,
    post: Tensor,
    comb: Tensor,
    entry: StreamEntry,
    experts: MoeArguments,
    *,
    iters: int,
    norm_eps: float,
    eps: float,
) -> Tensor:
    streams, x, post, comb = ops.hc_next(
        output, streams, post, comb, entry, iters=iters, norm_eps=norm_eps, eps=eps
    )
    y: Tensor = ops.hc_post(ops.moe(x, *experts), streams, post, comb)
    return y


def block(
    ops: Any,
    streams: Tensor,
    inputs: InputArguments,
    slots: tuple[Tensor, ...],
    seen: SeenArguments,
    entry: StreamEntry,
    experts: MoeArguments,
    *,
    iters: int,
    norm_eps: float,
    eps: float,
) -> Tensor:
    made = ops.attention_inputs(streams, *inputs, iters=iters, norm_eps=norm_eps, eps=eps)
    _, post, comb, _, q, *rows = made
    for slot, row in zip(slots, rows, strict=True):
        slot.copy_(row)
    y: Tensor = ops.hc_moe(
        ops.attention(q, *seen),
        streams,
        post,
        comb,
        entry,
        experts,
        iters=iters,
        norm_eps=norm_eps,
        eps=eps,
    )
    return y
