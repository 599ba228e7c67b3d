"""T1: experts of int4 weights with int8 activations, by the int8 operators: whole-number products, exact.

Weights stay packed in memory; those of a few experts at a time are unpacked to int8 before their products.
The operator that takes int4 itself wants them laid out by columns and a table of corrections beside them, and
the documentation lists it for neither A2 nor A3 (Ascend/op-plugin, August 2026).
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fourfold.kernels.ascend import aten
from fourfold.kernels.ascend.forms import Form
from fourfold.kernels.ascend.products import (
    ROUTED,
    Scaled,
    choices_in_order,
    combine,
    experts_limit,
    experts_options,
    pass_int8,
    quantise,
    route,
)
from fourfold.kernels.ascend.public import A2_A3, BF16, draw
from fourfold.kernels.formats import Rounding, channel_scale, integer_codes, is_integer

_UNPACKED = 16  # experts at a time: 400 MiB of V4-Flash's, 1 GiB of V4-Pro's
_FEW_TOKENS = 64  # a decode step, which must not wait for the device


def experts(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    w1: Tensor,
    s1: Tensor,
    w3: Tensor,
    s3: Tensor,
    w2: Tensor,
    s2: Tensor,
    limit: float,
    rounding: Rounding = Rounding.NONE,
    places: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    stacks = (w1, channel_scale(s1)), (w3, channel_scale(s3)), (w2, channel_scale(s2))
    numbers, amounts = choices_in_order(indices, weights, w1.shape[0])
    codes, amplitude = quantise(x)
    if x.shape[0] > _FEW_TOKENS:
        return _by_expert(codes, amplitude, numbers, amounts, stacks, limit, out)
    together = max(1, _UNPACKED // numbers.shape[1])
    parts = [slice(start, start + together) for start in range(0, len(codes), together)]
    y = torch.cat(
        [_choice_by_choice(codes[p], amplitude[p], numbers[p], amounts[p], stacks, limit) for p in parts]
    )
    return y if out is None else out.add_(y)


def _choice_by_choice(
    codes: Tensor,
    amplitude: Tensor,
    numbers: Tensor,
    amounts: Tensor,
    stacks: tuple[Scaled, ...],
    limit: float,
) -> Tensor:
    """Every choice of every token is a group of one row, with matrices of its own."""
    k = numbers.shape[1]
    flat = numbers.flatten()
    rows, amplitude = codes.repeat_interleave(k, dim=0), amplitude.repeat_interleave(k)
    sizes = torch.ones(flat.shape, dtype=torch.int64, device=flat.device)
    w1, w3, w2 = ((integer_codes(w.index_select(0, flat)), s.index_select(0, flat)) for w, s in stacks)
    y = pass_int8(rows, amplitude, sizes, w1, w3, w2[0], limit) * w2[1]
    return (y.unflatten(0, (-1, k)) * amounts.unsqueeze(-1)).sum(dim=1)


def _by_expert(
    codes: Tensor,
    amplitude: Tensor,
    numbers: Tensor,
    amounts: Tensor,
    stacks: tuple[Scaled, ...],
    limit: float,
    out: Tensor | None,
) -> Tensor:
    """Some experts after the others, each with all of its rows; asks the device how many they are."""
    count = len(stacks[0][0])
    rows, where, sizes, amplitude = route(codes, numbers, count, amplitude)
    loads = aten.loads(numbers.flatten(), torch.arange(count, device=rows.device))
    ends = [0, *accumulate(size for size, _ in loads)]
    y = torch.empty(len(rows), stacks[2][1].shape[1], device=rows.device)
    for start in range(0, count, _UNPACKED):
        some = slice(start, min(start + _UNPACKED, count))
        here = slice(ends[some.start], ends[some.stop])
        if here.stop > here.start:
            w1, w3, w2 = ((integer_codes(w[some]), s[some]) for w, s in stacks)
            y[here] = pass_int8(rows[here], amplitude[here], sizes[some], w1, w3, w2[0], limit)
    channels = stacks[2][1].index_select(0, numbers.flatten()).view(*numbers.shape, -1)
    return combine(y, where, amounts.unsqueeze(-1) * channels, out)


def _are_int4(*arguments: Any, **options: Any) -> bool:
    stacks = arguments[3:9]
    rounding, places = experts_options(arguments, options)
    pairs = zip(stacks[::2], stacks[1::2], strict=True)
    packed = all(w.dtype == torch.uint8 and is_integer(w, s) for w, s in pairs)
    return rounding is Rounding.INT8 and packed and places is None and stacks[0].shape[0] > 1


def _limit(*arguments: Any, **_: Any) -> str | None:
    first, last = (torch.Size((w.shape[0], 2 * w.shape[1], w.shape[2])) for w in arguments[3:9:4])
    return experts_limit(first, last, int8=True)


def _int4(*shape: int) -> tuple[Tensor, Tensor]:
    codes = draw(*shape).mul(60).clamp(-127, 127).to(torch.int8).view(torch.uint8)
    return codes, (draw(shape[0], 2 * shape[1]).abs() + 0.5) * 0.01


def _trial() -> tuple[Any, ...]:
    indices = torch.stack([(torch.arange(2) * 3 + i) % 4 for i in (0, 1, 2, 1, 3)])
    stacks = [part for shape in ((4, 32, 128), (4, 32, 128), (4, 64, 64)) for part in _int4(*shape)]
    return draw(5, 128, dtype=torch.bfloat16), indices, draw(5, 2).abs(), *stacks, 10.0, Rounding.INT8


FORMS = (
    Form(
        operation="experts",
        tier="T1",
        operators=tuple(
            f"npu::{name}" for name in (*ROUTED, "npu_dequant_swiglu_quant", "npu_dynamic_quant")
        ),
        generations=A2_A3,
        run=experts,
        note="int4 weights, int8 inputs",
        covers=_are_int4,
        limit=_limit,
        trial=_trial,
        options={},
        bound=BF16,
    ),
)
