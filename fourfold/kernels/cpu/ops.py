"""The operations of the contract that run natively on a CPU; `fourfold.kernels` has their documentation.

Each one hands what the extension does not cover to the reference: gradients, types other than float32,
bfloat16 and the packed ones.  NOTES says so in the operator table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fourfold.kernels import cpu, reference
from fourfold.kernels.cpu import tensor_ops
from fourfold.kernels.formats import FP8_BLOCK, Rounding, decode

assert cpu.native is not None, "import fourfold.kernels.cpu.ops only where fourfold.kernels.cpu.available()"
native = cpu.native
_linear = native.linear
_grouped_linear = native.grouped_linear
_experts = native.experts

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


_COVERAGE = "native: without gradients; otherwise reference"

OPS: dict[str, Callable[..., Any]] = {
    "linear": linear,
    "grouped_linear": grouped_linear,
    "experts": experts,
    **tensor_ops.OPS,
}
NOTES: dict[str, str] = {**dict.fromkeys(OPS, _COVERAGE), **tensor_ops.NOTES}
