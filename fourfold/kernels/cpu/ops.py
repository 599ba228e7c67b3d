"""The operations of the contract that run natively on a CPU; `fourfold.kernels` has their documentation.

Each one hands what the extension does not cover to the reference: gradients, types other than float32,
bfloat16 and the packed ones.  NOTES says so in the operator table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fourfold import kernels
from fourfold.kernels import composed, cpu, reference
from fourfold.kernels.composed import Stored
from fourfold.kernels.cpu import tensor_ops
from fourfold.kernels.formats import FP8_BLOCK, Rounding, decode

assert cpu.native is not None, "import fourfold.kernels.cpu.ops only where fourfold.kernels.cpu.available()"
native = cpu.native
_linear = native.linear
_grouped_linear = native.grouped_linear
_experts = native.experts
_attention_inputs = native.attention_inputs
_attention_output = native.attention_output
_compressor_inputs = native.compressor_inputs

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


def linear(x: Tensor, weight: Tensor, scale: Tensor | None, rounding: Rounding = Rounding.NONE) -> Tensor:
    if not _covers(x, weight, scale):
        return reference.linear(x, weight, scale, rounding)
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
        return reference.grouped_linear(x, weight, scale, groups, rounding)
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
    if not (
        w1.dtype == w3.dtype
        and all(_covers(x, w, s) for w, s in ((w1, s1), (w3, s3), (w2, s2)))
        and not (weights.requires_grad and torch.is_grad_enabled())
        and (out is None or out.is_contiguous())
    ):
        return reference.experts(x, indices, weights, w1, s1, w3, s3, w2, s2, limit, rounding, places, out)
    y = torch.zeros(x.shape, dtype=torch.float32) if out is None else out
    _experts(
        x.contiguous(), indices.contiguous(), weights.float().contiguous(),
        w1, s1, w3, s3, w2, s2, limit, rounding.value, places, y,
    )  # fmt: skip
    return y


def _fits(x: Tensor, *weights: Stored) -> bool:
    """Whether a composed operation runs as one: float32 between its parts, all of them native."""
    return x.dtype is torch.float32 and all(_covers(x, *weight) for weight in weights)


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32)


def attention_inputs(
    x: Tensor,
    wq_a: Stored,
    q_norm: Tensor,
    wq_b: Stored,
    wkv: Stored,
    kv_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    eps: float,
    roundings: tuple[Rounding, Rounding, Rounding],
) -> tuple[Tensor, Tensor, Tensor]:
    if not (_fits(x, wq_a, wq_b, wkv) and x.is_contiguous() and x.numel()):
        return composed.attention_inputs(
            kernels, x, wq_a, q_norm, wq_b, wkv, kv_norm, cos, sin, heads, eps, roundings
        )
    lead = x.shape[:-1]
    qr = _empty(*lead, wq_a[0].shape[0])
    q = _empty(*lead, heads, wq_b[0].shape[0] // heads)
    kv = _empty(*lead, wkv[0].shape[0])
    to_wq_a, to_wq_b, to_wkv = roundings
    _attention_inputs(
        x, *wq_a, q_norm, *wq_b, *wkv, kv_norm, cos, sin, heads, eps,
        to_wq_a.value, to_wq_b.value, to_wkv.value, qr, q, kv,
    )  # fmt: skip
    return qr, q, kv


def attention_output(
    o: Tensor,
    cos: Tensor,
    sin: Tensor,
    wo_a: Stored,
    groups: int,
    wo_b: Stored,
    roundings: tuple[Rounding, Rounding],
) -> Tensor:
    shared = wo_a[0].dtype == torch.float8_e4m3fn and wo_a[0].shape[0] // groups % FP8_BLOCK
    if shared or not (_fits(o, wo_a, wo_b) and o.is_contiguous() and o.numel()):
        return composed.attention_output(kernels, o, cos, sin, wo_a, groups, wo_b, roundings)
    y = _empty(*o.shape[:-2], wo_b[0].shape[0])
    _attention_output(o, cos, sin, *wo_a, groups, *wo_b, roundings[0].value, roundings[1].value, y)
    return y


def compressor_inputs(
    x: Tensor, wkv: Stored, wgate: Stored, ape: Tensor, positions: Tensor, rounding: Rounding
) -> Tensor:
    covered = _covers(x, *wkv) and _covers(x, *wgate) and x.is_contiguous() and positions.is_contiguous()
    if not covered or ape.dtype is not torch.float32:
        return composed.compressor_inputs(kernels, x, wkv, wgate, ape, positions, rounding)
    y = _empty(*x.shape[:-1], 2 * wkv[0].shape[0])
    _compressor_inputs(x, *wkv, *wgate, ape, positions, rounding.value, y)
    return y


_COVERAGE = "native: without gradients; otherwise reference"

OPS: dict[str, Callable[..., Any]] = {
    "linear": linear,
    "grouped_linear": grouped_linear,
    "experts": experts,
    "attention_inputs": attention_inputs,
    "attention_output": attention_output,
    "compressor_inputs": compressor_inputs,
    **tensor_ops.OPS,
}
NOTES: dict[str, str] = {**dict.fromkeys(OPS, _COVERAGE), **tensor_ops.NOTES}
