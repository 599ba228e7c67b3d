"""T1: experts of int4 weights with int8 activations, by the int8 operators: whole-number products, exact.

Weights stay packed in memory; those of a few experts at a time are unpacked to int8 before their products.
The operator that takes int4 itself wants them laid out by columns and a table of corrections beside them, and
the documentation lists it for neither A2 nor A3 (Ascend/op-plugin, August 2026).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fourfold.kernels.ascend import aten
from fourfold.kernels.ascend.expert_call import ExpertCall
from fourfold.kernels.ascend.products import (
    ROUTED,
    Scaled,
    choices_in_order,
    combine,
    experts_form,
    experts_limit,
    experts_trial,
    pass_int8,
    quantise,
    route,
)
from fourfold.kernels.ascend.public import A2_A3, draw
from fourfold.kernels.formats import Rounding, integer_codes, is_integer

_UNPACKED = 16  # experts at a time: 400 MiB of V4-Flash's, 1 GiB of V4-Pro's
_FEW_TOKENS = 64  # a decode step, which must not wait for the device


def experts(call: ExpertCall) -> Tensor:
    codes, amplitude = quantise(call.x)
    if len(codes) > _FEW_TOKENS:
        return _by_expert(codes, amplitude, call)
    numbers, amounts = choices_in_order(call)
    together = max(1, _UNPACKED // numbers.shape[1])
    parts = [slice(start, start + together) for start in range(0, len(codes), together)]
    y = [_choice_by_choice(codes[p], amplitude[p], numbers[p], amounts[p], call) for p in parts]
    return call.added(torch.cat(y))


def _choice_by_choice(
    codes: Tensor, amplitude: Tensor, numbers: Tensor, amounts: Tensor, call: ExpertCall
) -> Tensor:
    """Every choice of every token is a group of one row, with matrices of its own."""
    k = numbers.shape[1]
    flat = numbers.flatten()
    rows, amplitude = codes.repeat_interleave(k, dim=0), amplitude.repeat_interleave(k)
    sizes = torch.ones(flat.shape, dtype=torch.int64, device=flat.device)
    w1, w3, w2 = ((integer_codes(w.index_select(0, flat)), s.index_select(0, flat)) for w, s in _scaled(call))
    y = pass_int8(rows, amplitude, sizes, w1, w3, w2[0], call.limit) * w2[1]
    return (y.unflatten(0, (-1, k)) * amounts.unsqueeze(-1)).sum(dim=1)


def _by_expert(codes: Tensor, amplitude: Tensor, call: ExpertCall) -> Tensor:
    """Some experts after the others, each with all of its rows; asks the device how many they are."""
    numbers, amounts = choices_in_order(call)
    rows, where, sizes, amplitude = route(codes, numbers, call.count, amplitude)
    loads = aten.loads(numbers.flatten(), torch.arange(call.count, device=rows.device))
    ends = [0, *accumulate(size for size, _ in loads)]
    last = call.channels[2]
    y = torch.empty(len(rows), last.shape[1], device=rows.device)
    for start in range(0, call.count, _UNPACKED):
        some = slice(start, min(start + _UNPACKED, call.count))
        here = slice(ends[some.start], ends[some.stop])
        if here.stop > here.start:
            w1, w3, w2 = ((integer_codes(w[some]), s[some]) for w, s in _scaled(call))
            y[here] = pass_int8(rows[here], amplitude[here], sizes[some], w1, w3, w2[0], call.limit)
    channels = last.index_select(0, numbers.flatten()).view(*numbers.shape, -1)
    return call.added(combine(y, where, amounts.unsqueeze(-1) * channels))


def _scaled(call: ExpertCall) -> Iterator[Scaled]:
    return zip(call.stacks, call.channels, strict=True)


def _are_int4(call: ExpertCall) -> bool:
    packed = all(w.dtype == torch.uint8 and is_integer(w, s) for w, s in call.stored)
    return call.rounding is Rounding.INT8 and packed and call.places is None and call.count > 1


def _limit(call: ExpertCall) -> str | None:
    w1, _, w2 = call.stacks
    first, last = (torch.Size((w.shape[0], 2 * w.shape[1], w.shape[2])) for w in (w1, w2))
    return experts_limit(first, last, int8=True)


def _int4(*shape: int) -> tuple[Tensor, Tensor]:
    codes = draw(*shape).mul(60).clamp(-127, 127).to(torch.int8).view(torch.uint8)
    return codes, (draw(shape[0], 2 * shape[1]).abs() + 0.5) * 0.01


def _trial() -> tuple[Any, ...]:
    stacks = [part for shape in ((4, 32, 128), (4, 32, 128), (4, 64, 64)) for part in _int4(*shape)]
    return experts_trial(128, stacks, Rounding.INT8)


FORMS = (
    experts_form(
        (*ROUTED, "npu_dequant_swiglu_quant", "npu_dynamic_quant"),
        A2_A3,
        run=experts,
        covers=_are_int4,
        limit=_limit,
        note="int4 weights, int8 inputs",
        trial=_trial,
    ),
)
