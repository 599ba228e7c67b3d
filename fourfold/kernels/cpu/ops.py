"""The operations of the contract that run natively on a CPU; `fourfold.kernels` has their documentation.

Each one hands what the extension does not cover to the reference: gradients, types other than float32,
bfloat16 and the packed ones.  int8 and int4 weights are unpacked for its products.  NOTES says so in the
operator table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fourfold import kernels
from fourfold.kernels import composed, cpu, reference
from fourfold.kernels.composed import (
    CompressorWeights,
    ExpertWeights,
    InputArguments,
    MoeArguments,
    SeenArguments,
    Stored,
    StreamEntry,
)
from fourfold.kernels.cpu import tensor_ops
from fourfold.kernels.formats import (
    FP8_BLOCK,
    Rounding,
    channel_scale,
    decode,
    integer_codes,
    is_integer,
    row_slabs,
    to_int8,
)

assert cpu.native is not None, "import fourfold.kernels.cpu.ops only where fourfold.kernels.cpu.available()"
native = cpu.native
_linear = native.linear
_grouped_linear = native.grouped_linear
_experts = native.experts
_attention_inputs = native.attention_inputs
_attention = native.attention
_compressor_inputs = native.compressor_inputs
_compressor_entries = native.compressor_entries
_index_queries = native.index_queries
_moe = native.moe
_hc_moe = native.hc_moe
_block = native.block

_PACKED = frozenset({torch.int8, torch.float8_e4m3fn})
_PLAIN = frozenset({torch.float32, torch.bfloat16})


def _covers(x: Tensor, weight: Tensor, scale: Tensor | None) -> bool:
    if scale is None:
        known = weight.dtype in _PLAIN
    else:
        known = weight.dtype in _PACKED and (
            weight.dtype != torch.int8 or scale.dtype == torch.float8_e8m0fnu
        )
    return (
        known
        and x.dtype in _PLAIN
        and weight.is_contiguous()
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    )


def _is_unpacked(x: Tensor, weight: Tensor, scale: Tensor | None) -> bool:
    """Whether the weight's codes are unpacked for the native product."""
    return (
        is_integer(weight, scale) and x.dtype in _PLAIN and not (torch.is_grad_enabled() and x.requires_grad)
    )


def _unpacked_linear(x: Tensor, weight: Tensor, scale: Tensor | None, rounding: Rounding) -> Tensor:
    """The product of int8 or int4 weights: their codes are exact in bf16, as those of an int8 input are."""
    assert scale is not None
    amplitude = None
    y = x.to(torch.float32)
    if rounding is Rounding.INT8:
        y, amplitude = to_int8(x)
        rounding = Rounding.BF16
    codes = (integer_codes(part).to(torch.bfloat16) for part, _ in row_slabs(weight, scale))
    result = torch.cat([linear(y, part, None, rounding) for part in codes], dim=-1) * channel_scale(scale)
    return (result if amplitude is None else result * amplitude).to(x.dtype)


def linear(x: Tensor, weight: Tensor, scale: Tensor | None, rounding: Rounding = Rounding.NONE) -> Tensor:
    if not _covers(x, weight, scale):
        other = _unpacked_linear if _is_unpacked(x, weight, scale) else reference.linear
        return other(x, weight, scale, rounding)
    y = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=torch.float32)
    _linear(x if x.is_contiguous() else x.contiguous(), weight, scale, rounding.value, y)
    return y if x.dtype is torch.float32 else y.to(x.dtype)


def grouped_linear(
    x: Tensor, weight: Tensor, scale: Tensor | None, groups: int, rounding: Rounding = Rounding.NONE
) -> Tensor:
    rows = weight.shape[0] // groups
    if weight.dtype == torch.float8_e4m3fn and rows % FP8_BLOCK:
        # Groups that are no whole number of blocks share scales with their neighbours.
        weight, scale = decode(weight, scale), None
    if not _covers(x, weight, scale):
        if not _is_unpacked(x, weight, scale):
            return reference.grouped_linear(x, weight, scale, groups, rounding)
        assert scale is not None
        matrices = zip(x.unbind(-2), weight.chunk(groups), scale.chunk(groups), strict=True)
        return torch.stack([linear(*group, rounding) for group in matrices], dim=-2)
    y = torch.empty((*x.shape[:-1], rows), dtype=torch.float32)
    _grouped_linear(x if x.is_contiguous() else x.contiguous(), weight, scale, rounding.value, y)
    return y if x.dtype is torch.float32 else y.to(x.dtype)


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
    stored = ((w1, s1), (w3, s3), (w2, s2))
    if not (
        w1.dtype == w3.dtype
        and all(_covers(x, w, s) for w, s in stored)
        and not (weights.requires_grad and torch.is_grad_enabled())
        and (out is None or out.is_contiguous())
    ):
        product = linear if any(_is_unpacked(x, w, s) for w, s in stored) else reference.linear
        return reference.experts_by(
            product, x, indices, weights, w1, s1, w3, s3, w2, s2, limit, rounding, places, out
        )
    y = torch.zeros(x.shape, dtype=torch.float32) if out is None else out
    _experts(
        x.contiguous(), indices.contiguous(), weights.float().contiguous(),
        w1, s1, w3, s3, w2, s2, limit, rounding.value, places, y,
    )  # fmt: skip
    return y


# The composed operations run as one where float32 lies between their parts.  What the arguments are the
# extension sees for itself: it returns False, and does nothing, where it does not cover them.


def _plain(*learned: Any) -> bool:
    """Whether no gradient is wanted through any of these tensors and tuples of them."""
    if not torch.is_grad_enabled():
        return True
    return all(
        _plain(*part) if isinstance(part, tuple) else not (isinstance(part, Tensor) and part.requires_grad)
        for part in learned
    )


def attention_inputs(
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
    rest = (
        entry, wq_a, q_norm, wq_b, wkv, kv_norm, cos, sin, heads, roundings,
        compressors, positions, to_compressors,
    )  # fmt: skip
    if streams.dtype is torch.float32 and _plain(streams, *rest):
        batch, tokens, n, width = streams.shape
        new = streams.new_empty
        x, post, comb = new(batch, tokens, width), new(batch, tokens, n), new(batch, tokens, n, n)
        qr = new(batch, tokens, wq_a[0].shape[0])
        q = new(batch, tokens, heads, wq_b[0].shape[0] // heads)
        kv = new(batch, tokens, wkv[0].shape[0])
        rows = [new(batch, tokens, 2 * weights[2].shape[1]) for weights in compressors]
        if _attention_inputs(
            streams.contiguous(), rest, iters, norm_eps, eps, x, post, comb, qr, q, kv, rows
        ):
            return x, post, comb, qr, q, kv, *rows
    return composed.attention_inputs(kernels, streams, *rest, iters=iters, norm_eps=norm_eps, eps=eps)


def attention(
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
    rest = (
        window, window_range, entries, entry_range, entry_index, sink, scale, rounding,
        cos, sin, wo_a, groups, wo_b, roundings,
    )  # fmt: skip
    if q.dtype is torch.float32 and _plain(q, *rest):
        y = q.new_empty(*q.shape[:-2], wo_b[0].shape[0])
        if _attention(q, rest, y):
            return y
    return composed.attention(kernels, q, *rest)


def compressor_inputs(x: Tensor, weights: CompressorWeights, positions: Tensor, rounding: Rounding) -> Tensor:
    if _plain(x, weights):
        y = torch.empty((*x.shape[:-1], 2 * weights[2].shape[1]), dtype=torch.float32)
        if _compressor_inputs(x.contiguous(), weights, positions, rounding, y):
            return y
    return composed.compressor_inputs(kernels, x, weights, positions, rounding)


def compressor_entries(
    pending: Tensor, tokens: Tensor, norm: Tensor, cos: Tensor, sin: Tensor, overlapping: bool, eps: float
) -> Tensor:
    if _plain(pending, norm):
        y = torch.empty((*tokens.shape[:2], norm.shape[0]), dtype=torch.float32)
        if _compressor_entries(pending, tokens, norm, cos, sin, overlapping, eps, y):
            return y
    return composed.compressor_entries(kernels, pending, tokens, norm, cos, sin, overlapping, eps)


def index_queries(
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
    rest = wq_b, weights_proj, heads, cos, sin, scale, roundings
    if x.dtype is torch.float32 and _plain(x, qr, *rest):
        q = x.new_empty(*x.shape[:-1], heads, wq_b[0].shape[0] // heads)
        weights = x.new_empty(*x.shape[:-1], heads)
        if _index_queries(x, qr, rest, q, weights):
            return q, weights
    return composed.index_queries(kernels, x, qr, *rest)


def moe(
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
    rest = router, bias, chosen, k, scaling, routed, shared, limit, roundings
    if _plain(x, *rest):
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        if _moe(x, rest, y):
            return y
    return composed.moe(kernels, x, *rest)


def hc_moe(
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
    if _plain(output, streams, post, comb, entry, experts):
        y = streams.new_empty(streams.shape)
        if _hc_moe(output, streams.contiguous(), post, comb, entry, experts, iters, norm_eps, eps, y):
            return y
    return composed.hc_moe(
        kernels, output, streams, post, comb, entry, experts, iters=iters, norm_eps=norm_eps, eps=eps
    )


def block(
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
    if _plain(streams, inputs, seen, entry, experts):
        y = streams.new_empty(streams.shape)
        if _block(streams.contiguous(), inputs, slots, seen, entry, experts, iters, norm_eps, eps, y):
            return y
    return composed.block(
        kernels, streams, inputs, slots, seen, entry, experts, iters=iters, norm_eps=norm_eps, eps=eps
    )


def fp4_input() -> Rounding:
    """INT16_GROUPS where matrix units take bytes, INT8_GROUPS where nothing multiplies bfloat16."""
    return Rounding(native.fp4_rounding())


_COVERAGE = "native: without gradients, int8 and int4 weights unpacked first; otherwise reference"

OPS: dict[str, Callable[..., Any]] = {
    "linear": linear,
    "grouped_linear": grouped_linear,
    "experts": experts,
    "attention_inputs": attention_inputs,
    "attention": attention,
    "compressor_inputs": compressor_inputs,
    "compressor_entries": compressor_entries,
    "index_queries": index_queries,
    "moe": moe,
    "hc_moe": hc_moe,
    "block": block,
    **tensor_ops.OPS,
}
NOTES: dict[str, str] = {**dict.fromkeys(OPS, _COVERAGE), **tensor_ops.NOTES}
