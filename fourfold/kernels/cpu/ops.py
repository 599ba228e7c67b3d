"""The operations of the contract that run natively on a CPU; `fourfold.kernels` has their documentation.

Each one hands what the extension does not cover to the reference: gradients, weights that are not packed,
types of x other than float32 and bfloat16.  NOTES says so in the operator table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fourfold.kernels import cpu, reference
from fourfold.kernels.cpu import tensor_ops
from fourfold.kernels.formats import FP8_BLOCK, Rounding, round_input

assert cpu.native is not None, "import fourfold.kernels.cpu.ops only where fourfold.kernels.cpu.available()"
native = cpu.native
_linear = native.linear
_grouped_linear = native.grouped_linear
_experts = native.experts

_PACKED = frozenset({torch.int8, torch.float8_e4m3fn})
_FLOATS = frozenset({torch.float32, torch.bfloat16})
_TOKENS = 1024


def _covers(x: Tensor, weight: Tensor, scale: Tensor) -> bool:
    return (
        weight.dtype in _PACKED
        and (weight.dtype != torch.int8 or scale.dtype == torch.float8_e8m0fnu)
        and x.dtype in _FLOATS
        and weight.is_contiguous()
        and not (x.requires_grad and torch.is_grad_enabled())
    )


def _prepared(x: Tensor) -> Tensor:
    """x as contiguous float32: itself in the usual case."""
    x = x if x.dtype is torch.float32 else x.float()
    return x if x.is_contiguous() else x.contiguous()


def linear(x: Tensor, weight: Tensor, scale: Tensor | None, rounding: Rounding = Rounding.NONE) -> Tensor:
    if scale is None or not _covers(x, weight, scale):
        return reference.linear(x, weight, scale, rounding)
    x = round_input(x, rounding)
    y = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=torch.float32)
    _linear(_prepared(x), weight, scale, y)
    return y if x.dtype is torch.float32 else y.to(x.dtype)


def grouped_linear(
    x: Tensor, weight: Tensor, scale: Tensor | None, groups: int, rounding: Rounding = Rounding.NONE
) -> Tensor:
    rows = weight.shape[0] // groups
    # FP8 groups that are no whole number of blocks share scales with their neighbours.
    if scale is None or not _covers(x, weight, scale) or (rows % FP8_BLOCK and weight.dtype != torch.int8):
        return reference.grouped_linear(x, weight, scale, groups, rounding)
    x = round_input(x, rounding)
    y = torch.empty((*x.shape[:-1], rows), dtype=torch.float32)
    _grouped_linear(_prepared(x), weight, scale, y)
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
    scaled = s1 is not None and s3 is not None and s2 is not None
    if not (
        scaled
        and rounding is not Rounding.BF16
        and places is None
        and out is None
        and w1.dtype == w3.dtype
        and all(_covers(x, w, s) for w, s in ((w1, s1), (w3, s3), (w2, s2)) if s is not None)
        and not (weights.requires_grad and torch.is_grad_enabled())
    ):
        return reference.experts(x, indices, weights, w1, s1, w3, s3, w2, s2, limit, rounding, places, out)
    y = torch.empty_like(x, dtype=torch.float32, memory_format=torch.contiguous_format)
    rows = (_prepared(x), indices.contiguous(), _prepared(weights), y)
    # The kernel keeps every chosen expert's output until it adds them up: blocks bound that memory.
    for start in range(0, len(x), _TOKENS):
        part = slice(start, start + _TOKENS)
        x_part, index_part, weight_part, y_part = (t[part] for t in rows)
        _experts(
            x_part, index_part, weight_part, w1, s1, w3, s3, w2, s2, limit, rounding is Rounding.FP8, y_part
        )
    return y


_COVERAGE = "native: FP4 and FP8 weights without gradients; otherwise reference"

OPS: dict[str, Callable[..., Any]] = {
    "linear": linear,
    "grouped_linear": grouped_linear,
    "experts": experts,
    **tensor_ops.OPS,
}
NOTES: dict[str, str] = {**dict.fromkeys(OPS, _COVERAGE), **tensor_ops.NOTES}
