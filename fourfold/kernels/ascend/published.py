"""T1 on the 950: products of the published checkpoint's weights as they are packed, FP8 and MXFP4.

Linears: FP8 inputs in groups of 128 times FP8 blocks of 128 x 128, which is mode G-B of npu_quant_matmul to
the letter.  Routed experts: the same inputs as MXFP8 (four groups of 32 share a scale) times MXFP4 weights.
Nothing is packed anew, and no layout is changed.  Limits are those of the operators' documentation
(Ascend/op-plugin, docs/zh/custom_APIs/torch_npu, August 2026).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fourfold.kernels import reference
from fourfold.kernels.ascend.aten import by_expert
from fourfold.kernels.ascend.decode import powers
from fourfold.kernels.ascend.expert_call import ExpertCall
from fourfold.kernels.ascend.forms import Form
from fourfold.kernels.ascend.products import (
    MOST_GROUPS,
    choices_in_order,
    combine,
    experts_form,
    experts_trial,
    matrix_limit,
)
from fourfold.kernels.ascend.public import A5, BF16, draw
from fourfold.kernels.formats import ACTIVATION_GROUP, FP4_GROUP, FP8_BLOCK, Rounding, is_integer, to_fp8

_FP4, _E8M0 = 296, 293  # torch_npu.float4_e2m1fn_x2 and float8_e8m0fnu
_ROWS = 32768  # of a matrix are multiplied at a time: it may have 65535, and V4-Pro's queries have one more
_ALIGNED = 64  # values: what experts' rows and columns must be multiples of
_FLIPS = 0.5  # how near experts must come: sums rounded to bf16 fall on other FP8 values now and then


def linear(x: Tensor, weight: Tensor, scale: Tensor | None, rounding: Rounding = Rounding.NONE) -> Tensor:
    assert scale is not None
    values, unit = to_fp8(x.flatten(0, -2), ACTIVATION_GROUP)
    codes = values.to(torch.float8_e4m3fn)
    slabs = zip(weight.split(_ROWS), powers(scale).split(_ROWS // FP8_BLOCK), strict=True)
    parts = [_product(codes, unit, *slab, x.dtype) for slab in slabs]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).view(*x.shape[:-1], -1)


def _product(codes: Tensor, unit: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """FP8 [N, I] with scales [N, I/128], and FP8 [O, I] with scales [O/128, I/128] -> [N, O]."""
    y: Tensor = torch.ops.npu.npu_quant_matmul.default(
        codes,
        weight.transpose(0, 1),
        scale.transpose(0, 1),
        pertoken_scale=unit,
        output_dtype=dtype,
        group_sizes=[1, FP8_BLOCK, FP8_BLOCK],
    )
    return y


def _is_fp8(x: Tensor, weight: Tensor, scale: Tensor | None, rounding: Rounding = Rounding.NONE) -> bool:
    return rounding is Rounding.FP8 and weight.dtype == torch.float8_e4m3fn


def _linear_limit(x: Tensor, weight: Tensor, *_: object) -> str | None:
    return matrix_limit(weight[:_ROWS].shape)


def expert_fp8(call: ExpertCall) -> Tensor:
    x = call.x.float()
    w1, w3, w2 = call.matrices(0)
    gate, up = linear(x, *w1), linear(x, *w3)
    return call.added(linear(reference.swiglu(gate, up, call.limit) * call.weights, *w2))


def experts_fp4(call: ExpertCall) -> Tensor:
    numbers, amounts = choices_in_order(call)
    order, where, sizes = by_expert(numbers, call.count)
    codes, units = _mx(call.x)
    tokens = order // numbers.shape[1]
    # As bytes: gathers of one-byte floats are not documented.
    codes = codes.view(torch.uint8).index_select(0, tokens).view(codes.dtype)
    units = units.index_select(0, tokens)
    w1, w3, w2 = call.stored
    gate, up = _grouped(codes, units, *w1, sizes), _grouped(codes, units, *w3, sizes)
    inner = reference.swiglu(gate, up, call.limit) * amounts.flatten()[order].unsqueeze(-1)
    y = _grouped(*_mx(inner), *w2, sizes).float()
    return call.added(combine(y, where, torch.ones_like(amounts).unsqueeze(-1)))


def _mx(x: Tensor) -> tuple[Tensor, Tensor]:
    """[N, D] -> FP8 [N, D], and the exponents of each 32 values as bytes [N, D/64, 2]."""
    codes, unit = to_fp8(x, ACTIVATION_GROUP)
    exponents = (unit.view(torch.int32) >> 23).to(torch.uint8)
    exponents = exponents.repeat_interleave(ACTIVATION_GROUP // FP4_GROUP, dim=-1)
    width = x.shape[-1] // FP4_GROUP
    return codes.to(torch.float8_e4m3fn), exponents[:, :width].reshape(x.shape[0], -1, 2)


def _grouped(rows: Tensor, units: Tensor, stack: Tensor, scale: Tensor | None, sizes: Tensor) -> Tensor:
    """Each expert's rows times its own matrix: [M, I] and FP4 [S, O, I/2] -> [M, O] bf16."""
    assert scale is not None
    y: Tensor = torch.ops.npu.npu_grouped_matmul.default(
        [rows],
        [stack.view(torch.uint8).transpose(1, 2)],
        antiquant_scale=[scale.view(torch.uint8).unflatten(-1, (-1, 2))],
        per_token_scale=[units],
        group_list=sizes,
        split_item=3,  # one tensor
        group_type=0,  # rows are in groups
        group_list_type=1,  # counts
        output_dtype=torch.bfloat16,
        weight_dtype=_FP4,
        per_token_scale_dtype=_E8M0,
    )[0]
    return y


def _is_one_fp8(call: ExpertCall) -> bool:
    alone = call.count == 1 and call.indices.shape[1] == 1 and call.places is None
    return alone and all(_is_fp8(call.x, *pair, call.rounding) for pair in call.stored)


def _are_fp4(call: ExpertCall) -> bool:
    # The operator's sums leave it as bf16, so a caller that has more than that keeps it elsewhere.
    wanted = call.x.dtype == torch.bfloat16 and call.rounding is Rounding.FP8 and call.places is None
    packed = all(w.dtype == torch.int8 and not is_integer(w, s) for w, s in call.stored)
    return wanted and packed and call.count > 1


def _expert_limit(call: ExpertCall) -> str | None:
    w1, _, w2 = call.stacks
    return matrix_limit(w1.shape, w2.shape)


def _experts_limit(call: ExpertCall) -> str | None:
    w1, _, w2 = call.stacks
    if call.count > MOST_GROUPS:
        return f"{call.count} experts, allowed: {MOST_GROUPS}"
    width, inner = w2.shape[1], w1.shape[1]
    if width % _ALIGNED or inner % _ALIGNED:
        return f"experts of {width} by {inner}, allowed: multiples of {_ALIGNED}"
    return matrix_limit(w1.shape, w2.shape)


def _exponents(*shape: int) -> Tensor:
    """Scales about 1, as e8m0."""
    return (draw(*shape).round().clamp(-2, 2) + 127).to(torch.uint8).view(torch.float8_e8m0fnu)


def _fp8(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    weight = draw(rows, columns).to(torch.float8_e4m3fn)
    return weight, _exponents(-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK))


def _fp4(experts: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    codes = draw(experts, rows, columns // 2).mul(60).clamp(-127, 127).to(torch.int8)
    return codes, _exponents(experts, rows, columns // FP4_GROUP)


def _linear_trial() -> tuple[Any, ...]:
    return draw(3, 256, dtype=torch.bfloat16), *_fp8(192, 256), Rounding.FP8


def _expert_trial() -> tuple[Any, ...]:
    first, amounts = torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1)
    weights = [part.unsqueeze(0) for shape in ((128, 256), (128, 256), (256, 128)) for part in _fp8(*shape)]
    return draw(3, 256, dtype=torch.bfloat16), first, amounts, *weights, 10.0, Rounding.FP8


def _experts_trial() -> tuple[Any, ...]:
    stacks = [part for shape in ((64, 192), (64, 192), (192, 64)) for part in _fp4(4, *shape)]
    return experts_trial(192, stacks, Rounding.FP8)


FORMS = (
    Form(
        operation="linear", tier="T1", operators=("npu::npu_quant_matmul",), generations=A5, run=linear,
        note="FP8 weights and inputs, by blocks", covers=_is_fp8, limit=_linear_limit, trial=_linear_trial,
        options={}, bound=BF16,
    ),
    experts_form(
        ("npu_quant_matmul",), A5, run=expert_fp8, covers=_is_one_fp8, limit=_expert_limit,
        note="one expert with FP8 weights and inputs", trial=_expert_trial,
    ),
    experts_form(
        ("npu_grouped_matmul",), A5, run=experts_fp4, covers=_are_fp4, limit=_experts_limit, bound=_FLIPS,
        note="FP4 weights, FP8 inputs of bf16", trial=_experts_trial,
    ),
)  # fmt: skip
