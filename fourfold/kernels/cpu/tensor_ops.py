"""The operations of the contract that are no product with a stored matrix; `fourfold.kernels` documents them.

Each hands to the reference what the extension does not cover: gradients, types other than float32 and
bfloat16, and what NOTES names.  Tensors whose rows lie at one distance are read where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fourfold import kernels
from fourfold.kernels import composed, cpu, reference
from fourfold.kernels.composed import StreamEntry
from fourfold.kernels.formats import FP4_GROUP, Rounding, row_bytes

assert cpu.native is not None, "import only where fourfold.kernels.cpu.available()"
native = cpu.native

_FLOATS = frozenset({torch.float32, torch.bfloat16})
_F32 = torch.float32
_STREAMS = 16


def _plain(*tensors: Tensor | None) -> bool:
    """Whether no gradient is wanted through any of them."""
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))


def _rows(x: Tensor) -> Tensor:
    """x [..., D], copied only if its rows are not contiguous or lie at uneven distances."""
    if x.is_contiguous():
        return x
    expected = None
    for size, stride in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        if size != 1:
            if expected is not None and stride != expected:
                return x.contiguous()
            expected = stride * size
    return _gapless(x)


def _gapless(x: Tensor) -> Tensor:
    """x [..., D], copied only if its rows are not contiguous."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _new(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if (
        x.dtype not in _FLOATS
        or not _plain(x, weight)
        or (weight is not None and weight.dtype not in _FLOATS)
    ):
        return reference.rms_norm(x, weight, eps)
    y = _new(x)
    native.rms_norm(_rows(x), weight, eps, y)
    return y


def rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
    lead = x.shape[: cos.dim() - 1]
    if x.dtype not in _FLOATS or cos.shape[:-1] != lead or cos.dtype is not _F32 or not _plain(x, cos, sin):
        return reference.rope(x, cos, sin, inverse)
    y = _new(x)
    native.rope(_rows(x), cos.contiguous(), sin.contiguous(), inverse, y)
    return y


def hadamard(x: Tensor) -> Tensor:
    if x.dtype not in _FLOATS or not _plain(x):
        return reference.hadamard(x)
    y = _new(x)
    native.hadamard(_rows(x), y)
    return y


def round_fp8(x: Tensor, group: int) -> Tensor:
    if x.dtype not in _FLOATS or not _plain(x):
        return reference.round_fp8(x, group)
    y = _new(x)
    native.round_fp8(_rows(x), group, y)
    return y


def round_fp4(x: Tensor, group: int = FP4_GROUP) -> Tensor:
    if x.dtype not in _FLOATS or not _plain(x):
        return reference.round_fp4(x, group)
    y = _new(x)
    native.round_fp4(_rows(x), group, y)
    return y


def pack_rows(x: Tensor, last: int, bits: int) -> Tensor:
    if x.dtype not in _FLOATS or not _plain(x) or (bits == 4 and (x.shape[-1] - last) % 2):
        return reference.pack_rows(x, last, bits)
    packed = torch.empty((*x.shape[:-1], row_bytes(x.shape[-1], last, bits)), dtype=torch.uint8)
    native.pack_rows(_rows(x), last, bits, packed)
    return packed


def unpack_rows(packed: Tensor, rows: Tensor, width: int, last: int, bits: int) -> Tensor:
    y = torch.empty((len(rows), width), dtype=torch.bfloat16)
    native.unpack_rows(packed, rows, last, bits, y)
    return y


def pool(values: Tensor, scores: Tensor) -> Tensor:
    if values.dtype is not _F32 or scores.dtype is not _F32 or not _plain(values, scores):
        return reference.pool(values, scores)
    y = torch.empty((*values.shape[:-2], values.shape[-1]), dtype=_F32)
    native.pool(_rows(values), _rows(scores), y)
    return y


def route_topk(
    x: Tensor, weight: Tensor, bias: Tensor, k: int, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    if not _routes(x, weight, bias) or bias.dtype is not _F32 or k > weight.shape[0]:
        return reference.route_topk(x, weight, bias, k, scaling)
    indices = torch.empty((x.shape[0], k), dtype=torch.int64)
    return indices, *_route(x, weight, bias, indices, scaling)


def route_hash(x: Tensor, weight: Tensor, chosen: Tensor, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
    if not _routes(x, weight, None):
        return reference.route_hash(x, weight, chosen, scaling)
    return chosen, *_route(x, weight, None, chosen.contiguous(), scaling)


def _routes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return x.dtype in _FLOATS and weight.dtype in _FLOATS and _plain(x, weight, bias)


def _route(
    x: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    scores = torch.empty((x.shape[0], weight.shape[0]), dtype=_F32)
    weights = torch.empty(indices.shape, dtype=_F32)
    native.route(_rows(x), _rows(weight), bias, indices, scaling, scores, weights)
    return weights, scores


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
    if _plain(streams, fn, scale, base):
        parts = _room_for_input(streams)
        if native.hc_pre(streams.contiguous(), fn, scale, base, iters, norm_eps, eps, *parts):
            return parts
    return reference.hc_pre(streams, fn, scale, base, iters=iters, norm_eps=norm_eps, eps=eps)


def hc_post(output: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    if not (
        streams.dtype in _FLOATS
        and output.dtype is streams.dtype
        and streams.numel() > 0
        and post.dtype is comb.dtype is _F32
        and _plain(output, streams, post, comb)
    ):
        return reference.hc_post(output, streams, post, comb)
    y = _new(streams)
    native.hc_post(output.contiguous(), streams.contiguous(), post.contiguous(), comb.contiguous(), y)
    return y


def hc_input(
    streams: Tensor, entry: StreamEntry, *, iters: int, norm_eps: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    if _plain(streams, *entry):
        parts = _room_for_input(streams)
        if native.hc_input(streams.contiguous(), *entry, iters, norm_eps, eps, *parts):
            return parts
    return composed.hc_input(kernels, streams, entry, iters=iters, norm_eps=norm_eps, eps=eps)


def hc_next(
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
    if output.dtype is streams.dtype and _plain(output, streams, post, comb, *entry):
        y, parts = _new(streams), _room_for_input(streams)
        if native.hc_next(output, streams.contiguous(), post, comb, *entry, iters, norm_eps, eps, y, *parts):
            return y, *parts
    return composed.hc_next(
        kernels, output, streams, post, comb, entry, iters=iters, norm_eps=norm_eps, eps=eps
    )


def _room_for_input(streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a sublayer: its input, post and comb."""
    *lead, n, width = streams.shape
    return (
        torch.empty((*lead, width), dtype=streams.dtype),
        torch.empty((*lead, n), dtype=_F32),
        torch.empty((*lead, n, n), dtype=_F32),
    )


def hc_head(
    streams: Tensor, fn: Tensor, scale: Tensor, base: Tensor, *, norm_eps: float, eps: float
) -> Tensor:
    if _plain(streams, fn, scale, base):
        y = torch.empty((*streams.shape[:-2], streams.shape[-1]), dtype=streams.dtype)
        if native.hc_head(streams.contiguous(), fn, scale, base, norm_eps, eps, y):
            return y
    return reference.hc_head(streams, fn, scale, base, norm_eps=norm_eps, eps=eps)


def sparse_attention(
    q: Tensor,
    window: Tensor,
    window_range: Tensor,
    entries: Tensor | None,
    entry_range: Tensor | None,
    entry_index: Tensor | None,
    sink: Tensor,
    scale: float,
    rounding: Rounding = Rounding.NONE,
) -> Tensor:
    if not (
        q.dtype in _FLOATS
        and window.dtype in _FLOATS
        and (entries is None or entries.dtype in _FLOATS)
        and sink.dtype is _F32
        and rounding is not Rounding.FP8
        and _plain(q, window, entries, sink)
    ):
        return reference.sparse_attention(
            q, window, window_range, entries, entry_range, entry_index, sink, scale, rounding
        )
    y = _new(q)
    native.sparse_attention(
        _rows(q),
        _gapless(window),
        window_range.contiguous(),
        None if entries is None else _gapless(entries),
        None if entry_range is None else entry_range.contiguous(),
        None if entry_index is None else entry_index.contiguous(),
        sink,
        scale,
        rounding is Rounding.BF16,
        y,
    )
    return y


def index_topk(q: Tensor, weights: Tensor, keys: Tensor, visible: Tensor, k: int) -> Tensor:
    floats = q.dtype in _FLOATS and keys.dtype in _FLOATS and weights.dtype in _FLOATS
    if not floats or not _plain(q, weights, keys):
        return reference.index_topk(q, weights, keys, visible, k)
    indices = torch.empty((*q.shape[:2], k), dtype=torch.int64)
    native.index_topk(_rows(q), weights.contiguous(), _gapless(keys), visible.contiguous(), indices)
    return indices


OPS: dict[str, Callable[..., Any]] = {
    "route_topk": route_topk,
    "route_hash": route_hash,
    "rms_norm": rms_norm,
    "rope": rope,
    "pool": pool,
    "hadamard": hadamard,
    "index_topk": index_topk,
    "sparse_attention": sparse_attention,
    "hc_pre": hc_pre,
    "hc_post": hc_post,
    "hc_head": hc_head,
    "hc_input": hc_input,
    "hc_next": hc_next,
    "round_fp8": round_fp8,
    "round_fp4": round_fp4,
    "pack_rows": pack_rows,
    "unpack_rows": unpack_rows,
}
NOTES: dict[str, str] = {
    **dict.fromkeys(OPS, "native: float32 and bfloat16 without gradients; otherwise reference"),
    "pool": "native: float32 without gradients; otherwise reference",
    "hc_pre": f"native: up to {_STREAMS} streams without gradients; otherwise reference",
    "hc_head": f"native: up to {_STREAMS} streams without gradients; otherwise reference",
    "hc_input": f"native: up to {_STREAMS} streams without gradients; otherwise its parts",
    "hc_next": f"native: up to {_STREAMS} streams without gradients; otherwise its parts",
    "sparse_attention": "native: inputs not rounded or in bf16, without gradients; otherwise reference",
}
