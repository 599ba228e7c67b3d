"""Operations of the contract that are several others in a row, so that a chip may run them in one call.

`ops` is who runs the parts: the contract itself (a chip without its own form), or the reference.  Signatures
and equations stand in `fourfold.kernels`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fourfold.kernels.formats import Rounding

Stored = tuple[Tensor, Tensor | None]
"""A weight and its scale."""


def attention_inputs(
    ops: Any,
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
    qr = ops.rms_norm(ops.linear(x, *wq_a, roundings[0]), q_norm, eps)
    q = ops.linear(qr, *wq_b, roundings[1]).unflatten(-1, (heads, -1))
    q = ops.rope(ops.rms_norm(q, None, eps), cos, sin, inverse=False)
    kv = ops.rms_norm(ops.linear(x, *wkv, roundings[2]), kv_norm, eps)
    return qr, q, ops.rope(kv, cos, sin, inverse=False)


def attention_output(
    ops: Any,
    o: Tensor,
    cos: Tensor,
    sin: Tensor,
    wo_a: Stored,
    groups: int,
    wo_b: Stored,
    roundings: tuple[Rounding, Rounding],
) -> Tensor:
    o = ops.rope(o, cos, sin, inverse=True)
    o = ops.grouped_linear(o.flatten(-2).unflatten(-1, (groups, -1)), *wo_a, groups, roundings[0])
    y: Tensor = ops.linear(o.flatten(-2), *wo_b, roundings[1])
    return y


def compressor_inputs(
    ops: Any,
    x: Tensor,
    wkv: Stored,
    wgate: Stored,
    ape: Tensor,
    positions: Tensor,
    rounding: Rounding,
) -> Tensor:
    x = x.float()
    values = ops.linear(x, *wkv, rounding).float()
    scores = ops.linear(x, *wgate, rounding).float() + ape[positions % ape.shape[0]]
    return torch.cat([values, scores], dim=-1)
