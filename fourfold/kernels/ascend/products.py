"""T1: products of int8 weights with int8 activations, and experts of bf16 weights, by torch_npu's operators.

Sums of int8 products stay whole numbers until both scales are applied in float32, as the contract wants it;
only what an operator documents no other way is left to it.  Limits are those of the operators' documentation
(Ascend/op-plugin, docs/zh/custom_APIs/torch_npu, August 2026).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fourfold.kernels import reference
from fourfold.kernels.ascend.aten import ascending
from fourfold.kernels.ascend.expert_call import ExpertCall, of_call
from fourfold.kernels.ascend.forms import Form
from fourfold.kernels.ascend.public import A2_A3, BF16, draw
from fourfold.kernels.formats import Rounding, channel_scale, is_integer, to_int8

_SUMS = 0.1  # how near experts must come whose sums are rounded to bf16 between their products
_LONGEST = 65535  # last dimension of a product's factors
MOST_GROUPS = 1024
_WIDEST_INNER = 10496  # of npu_dequant_swiglu_quant with groups


def linear(x: Tensor, weight: Tensor, scale: Tensor | None, rounding: Rounding = Rounding.NONE) -> Tensor:
    assert scale is not None
    codes, amplitude = quantise(x.flatten(0, -2))
    scale = channel_scale(scale)
    y = _product(codes, weight, scale).float() * scale * amplitude.unsqueeze(-1)
    return y.to(x.dtype).view(*x.shape[:-1], -1)


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """[N, I] -> int8 [N, I], scale [N] f32."""
    if x.dtype == torch.bfloat16:
        codes, scale = torch.ops.npu.npu_dynamic_quant.default(x)
        return codes, scale
    codes, scale = to_int8(x)  # npu_dynamic_quant takes no float32
    return codes.to(torch.int8), scale.squeeze(-1)


def _product(codes: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """[N, I] · [O, I]ᵀ -> int32 [N, O]; the scale is asked for and, with this result, not applied."""
    y: Tensor = torch.ops.npu.npu_quant_matmul.default(
        codes, weight.transpose(0, 1), scale, output_dtype=torch.int32
    )
    return y


def _is_int8(x: Tensor, weight: Tensor, scale: Tensor | None, rounding: Rounding = Rounding.NONE) -> bool:
    return rounding is Rounding.INT8 and weight.dtype == torch.int8 and is_integer(weight, scale)


def _linear_limit(x: Tensor, weight: Tensor, *_: object) -> str | None:
    return matrix_limit(weight.shape)


def matrix_limit(*shapes: torch.Size) -> str | None:
    longest = max(max(shape[-2:]) for shape in shapes)
    return f"a matrix of {longest} rows or columns, allowed: {_LONGEST}" if longest > _LONGEST else None


def experts_int8(call: ExpertCall) -> Tensor:
    w1, w3, w2 = call.stacks
    first, second, last = call.channels
    codes, amplitude = quantise(call.x)
    if call.count == 1:
        scale = torch.cat([first, second], dim=-1)
        sums = torch.cat([_product(codes, w[0], scale[0, : w.shape[1]]) for w in (w1, w3)], dim=-1)
        inner, inner_scale = _swiglu(sums, scale, amplitude, None, call.limit)
        y = _product(inner, w2[0], last[0]).float() * last * (inner_scale.unsqueeze(-1) * call.weights)
        return call.added(y)
    numbers, amounts = choices_in_order(call)
    rows, where, sizes, amplitude = route(codes, numbers, call.count, amplitude)
    y = pass_int8(rows, amplitude, sizes, (w1, first), (w3, second), w2, call.limit)
    channels = last.index_select(0, numbers.flatten()).view(*numbers.shape, -1)
    return call.added(combine(y, where, amounts.unsqueeze(-1) * channels))


Scaled = tuple[Tensor, Tensor]
"""int8 weights [S, O, I], and their channels' scales [S, O] f32."""


def pass_int8(
    rows: Tensor, amplitude: Tensor, sizes: Tensor, w1: Scaled, w3: Scaled, w2: Tensor, limit: float
) -> Tensor:
    """Each expert's rows through it, but for the scales of w2's channels.

    rows int8 [M, D], amplitude [M] f32 their scales, sizes [S] int64 -> [M, D] f32.
    """
    sums = torch.cat([_grouped(rows, w, sizes, torch.int32) for w, _ in (w1, w3)], dim=-1)
    inner, inner_scale = _swiglu(sums, torch.cat([w1[1], w3[1]], dim=-1), amplitude, sizes, limit)
    return _grouped(inner, w2, sizes, torch.int32).float() * inner_scale.unsqueeze(-1)


def experts_bf16(call: ExpertCall) -> Tensor:
    w1, w3, w2 = call.stacks
    numbers, amounts = choices_in_order(call)
    rows, where, sizes, _ = route(call.x.to(torch.bfloat16), numbers, call.count, None)
    gate, up = (_grouped(rows, w, sizes, torch.bfloat16) for w in (w1, w3))
    inner = reference.swiglu(gate, up, call.limit).to(torch.bfloat16)
    y = _grouped(inner, w2, sizes, torch.bfloat16).float()
    return call.added(combine(y, where, amounts.unsqueeze(-1)))


def choices_in_order(call: ExpertCall) -> tuple[Tensor, Tensor]:
    """Each token's experts in ascending order, none beyond the last, and their weights."""
    numbers, order = ascending(call.indices.clamp(0, call.count - 1))
    return numbers.to(torch.int32), call.weights.gather(1, order)


def route(x: Tensor, numbers: Tensor, count: int, scale: Tensor | None) -> tuple[Tensor, ...]:
    """Tokens sorted by expert: rows [N·K, D], the row of each choice [N·K] int32, each expert's number of
    rows [count] int64, and the rows' scales."""
    rows, where, sizes, scales = torch.ops.npu.npu_moe_init_routing_v2.default(
        x,
        numbers,
        scale=scale,
        active_num=numbers.numel(),
        expert_num=count,
        expert_tokens_num_type=1,  # counts
        expert_tokens_num_flag=True,
        quant_mode=-1,
        active_expert_range=[0, count],
        row_idx_type=0,
    )
    return rows, where, sizes, scales


def _grouped(rows: Tensor, stack: Tensor, sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """Each expert's rows times its own matrix: [M, I] and [S, O, I] -> [M, O]."""
    y: Tensor = torch.ops.npu.npu_grouped_matmul.default(
        [rows],
        [stack.transpose(1, 2)],
        group_list=sizes,
        split_item=3,  # one tensor
        group_type=0,  # rows are in groups
        group_list_type=1,  # counts
        output_dtype=dtype,
    )[0]
    return y


def _swiglu(
    sums: Tensor, scale: Tensor, amplitude: Tensor, sizes: Tensor | None, limit: float
) -> tuple[Tensor, Tensor]:
    """Sums [M, 2I] int32, scales [S, 2I] and [M] -> the activation as int8 [M, I] and its scale [M] f32."""
    inner, inner_scale = torch.ops.npu.npu_dequant_swiglu_quant.default(
        sums,
        weight_scale=scale,
        activation_scale=amplitude.unsqueeze(-1),
        group_index=sizes,
        activate_left=True,
        quant_mode=1,  # dynamic
        swiglu_mode=2,  # halves, clamped; 1 would take even and odd columns
        clamp_limit=limit,
        glu_alpha=1.0,
        glu_bias=0.0,
    )
    return inner, inner_scale


def combine(y: Tensor, where: Tensor, amounts: Tensor) -> Tensor:
    """Σ_k amounts[n, k] · y[where[n, k]] in float32; npu_moe_finalize_routing is documented for A2 alone."""
    chosen = y.index_select(0, where.clamp(0, y.shape[0] - 1)).view(*amounts.shape[:2], -1)
    return (chosen * amounts).sum(dim=1)


def _are_int8(call: ExpertCall) -> bool:
    alike = all(_is_int8(call.x, *pair, call.rounding) for pair in call.stored)
    return alike and call.places is None and (call.count > 1 or call.indices.shape[1] == 1)


def _are_bf16(call: ExpertCall) -> bool:
    # The operator's sums leave it as bf16, so a caller that has more than that keeps it elsewhere.
    wanted = call.x.dtype == torch.bfloat16 and call.rounding is Rounding.BF16 and call.places is None
    return wanted and call.count > 1 and all(w.dtype == torch.bfloat16 for w in call.stacks)


def _experts_limit(call: ExpertCall) -> str | None:
    w1, _, w2 = call.stacks
    return experts_limit(w1.shape, w2.shape, int8=w1.dtype == torch.int8)


def experts_limit(first: torch.Size, last: torch.Size, *, int8: bool) -> str | None:
    """Why stacks of these shapes, [S, I, D] and [S, D, I], are beyond the operators."""
    if first[0] > MOST_GROUPS:
        return f"{first[0]} experts, allowed: {MOST_GROUPS}"
    if int8 and (first[1] % 64 or first[1] > _WIDEST_INNER):
        return f"experts of width {first[1]}, allowed: multiples of 64 up to {_WIDEST_INNER}"
    return matrix_limit(first, last)


def _int8(*shape: int) -> tuple[Tensor, Tensor]:
    codes = draw(*shape).mul(40).round().clamp(-127, 127).to(torch.int8)
    return codes, (draw(*shape[:-1]).abs() + 0.5) * 0.01


def _linear_trial() -> tuple[Any, ...]:
    return (draw(3, 256, dtype=torch.bfloat16), *_int8(64, 256), Rounding.INT8)


def _experts_trial(rounding: Rounding) -> tuple[Any, ...]:
    stacks: list[Tensor | None] = []
    for shape in ((4, 64, 128), (4, 64, 128), (4, 128, 64)):
        stacks += (
            _int8(*shape) if rounding is Rounding.INT8 else (draw(*shape).div(8).to(torch.bfloat16), None)
        )
    return experts_trial(128, stacks, rounding)


def experts_trial(width: int, stacks: Sequence[Tensor | None], rounding: Rounding) -> tuple[Any, ...]:
    """Arguments of experts: five tokens, two of four experts each.  stacks: each with its scales."""
    indices = torch.stack([(torch.arange(2) * 3 + i) % 4 for i in (0, 1, 2, 1, 3)])
    return draw(5, width, dtype=torch.bfloat16), indices, draw(5, 2).abs(), *stacks, 10.0, rounding


ROUTED = ("npu_moe_init_routing_v2", "npu_grouped_matmul")


def experts_form(
    operators: Iterable[str],
    generations: frozenset[str],
    *,
    run: Callable[[ExpertCall], Tensor],
    covers: Callable[[ExpertCall], bool],
    limit: Callable[[ExpertCall], str | None],
    bound: float = BF16,
    **rest: Any,
) -> Form:
    """A form of `experts` by operators of torch_npu."""
    return Form(
        operation="experts", tier="T1", operators=tuple(f"npu::{name}" for name in operators),
        generations=generations, run=of_call(run), covers=of_call(covers), limit=of_call(limit),
        options={}, bound=bound, **rest,
    )  # fmt: skip


FORMS = (
    Form(
        operation="linear", tier="T1", operators=("npu::npu_dynamic_quant", "npu::npu_quant_matmul"),
        generations=A2_A3, run=linear, note="int8 weights and inputs", covers=_is_int8, limit=_linear_limit,
        trial=_linear_trial, options={}, bound=BF16,
    ),
    experts_form(
        (*ROUTED, "npu_dequant_swiglu_quant", "npu_dynamic_quant", "npu_quant_matmul"), A2_A3,
        run=experts_int8, covers=_are_int8, limit=_experts_limit, note="int8 weights and inputs",
        trial=lambda: _experts_trial(Rounding.INT8),
    ),
    experts_form(
        ROUTED, A2_A3, run=experts_bf16, covers=_are_bf16, limit=_experts_limit, bound=_SUMS,
        note="bf16 weights and inputs", trial=lambda: _experts_trial(Rounding.BF16),
    ),
)  # fmt: skip
