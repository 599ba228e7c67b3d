"""T0: every operation in plain aten operators that run on each generation.

The reference itself, where it needs no type that A2 and A3 lack and asks the device for nothing.  Here is
what takes its place elsewhere: weights are decoded by `decode`, and a call with few tokens (a decode step)
never waits for the device, so that it can be captured in a graph.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.kernels import attention_reference, reference
from fourfold.kernels.ascend.decode import decode
from fourfold.kernels.ascend.expert_call import ExpertCall, of_call
from fourfold.kernels.formats import Rounding, is_integer, round_input, row_slabs

_FEW_TOKENS = 64  # whose experts' weights are gathered: a decode step
_TOGETHER = 8  # of them at a time: 32 MiB each, decoded, in V4-Flash
_ALL_ROWS = 4096  # of a buffer are scored rather than ask which of them are seen


def linear(x: Tensor, weight: Tensor, scale: Tensor | None, rounding: Rounding = Rounding.NONE) -> Tensor:
    if is_integer(weight, scale):
        return reference.linear(x, weight, scale, rounding)
    x = round_input(x, rounding)
    dtype = _product_dtype(x, weight, scale)
    y = x.to(dtype)
    parts = [F.linear(y, decode(*slab).to(dtype)) for slab in row_slabs(weight, scale)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).to(x.dtype)


def _product_dtype(x: Tensor, weight: Tensor, scale: Tensor | None) -> torch.dtype:
    """bf16 where it holds both factors exactly and the result is bf16 anyway; sums are float32 inside."""
    return torch.bfloat16 if x.dtype == torch.bfloat16 and fits_bf16(weight, scale) else torch.float32


def fits_bf16(weight: Tensor, scale: Tensor | None) -> bool:
    """Whether bf16 holds the weight's values exactly: it does those of FP8 and FP4 times a power of two."""
    return weight.dtype == torch.bfloat16 or (scale is not None and scale.dtype == torch.float8_e8m0fnu)


def grouped_linear(
    x: Tensor, weight: Tensor, scale: Tensor | None, groups: int, rounding: Rounding = Rounding.NONE
) -> Tensor:
    if is_integer(weight, scale):
        return reference.grouped_linear(x, weight, scale, groups, rounding)
    x = round_input(x, rounding)
    dtype = _product_dtype(x, weight, scale)
    matrices = decode(weight, scale).to(dtype).unflatten(0, (groups, -1))
    return torch.einsum("...gi,goi->...go", x.to(dtype), matrices).to(x.dtype)


def _experts(call: ExpertCall) -> Tensor:
    x = round_input(call.x.float(), call.rounding)
    y = torch.zeros_like(x) if call.out is None else call.out
    if call.count == 1 and call.indices.shape[1] == 1 and call.places is None:
        return y.add_(_visit(x, call.weights, call, 0))
    if x.shape[0] > _FEW_TOKENS:
        _add_by_expert(y, x, call)
        return y
    for start in range(0, x.shape[0], _TOGETHER):
        part = slice(start, start + _TOGETHER)
        _add_gathered(y[part], x[part], part, call)
    return y


def _visit(x: Tensor, amounts: Tensor, call: ExpertCall, row: int) -> Tensor:
    """One expert's result for x [N, D], weighed by amounts [N, 1]."""
    w1, w3, w2 = call.matrices(row)
    inner = reference.swiglu(linear(x, *w1), linear(x, *w3), call.limit) * amounts
    return linear(inner, *w2, call.rounding)


def _add_gathered(y: Tensor, x: Tensor, part: slice, call: ExpertCall) -> None:
    """y, x: of some of the tokens.  Each token's own matrices, one choice of all tokens after the other."""
    numbers, order = ascending(call.indices[part])
    amounts = call.weights[part].gather(1, order)
    rows = numbers if call.places is None else call.places[numbers]
    amounts = amounts.where(rows >= 0, 0.0)
    rows = rows.clamp(0, call.count - 1)
    for k in range(rows.shape[1]):
        w1, w3, w2 = (_rows_of(*stored, rows[:, k]) for stored in call.stored)
        inner = reference.swiglu(_each(x, w1), _each(x, w3), call.limit) * amounts[:, k, None]
        y += _each(round_input(inner, call.rounding), w2)


def ascending(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers in order along the last dimension, and where they were.  As float32, which holds them
    exactly: A2 and A3 sort integers on their slow scalar cores."""
    values, order = numbers.to(torch.float32).sort(dim=-1, stable=True)
    return values.to(numbers.dtype), order


def by_expert(numbers: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choices [N, K] in the order of their experts: which they are [N·K], the place of each [N·K], and how
    many each of `count` experts has [count] int64.  Never waits for the device."""
    flat = numbers.flatten()
    order = ascending(flat)[1]
    where = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    ones = torch.ones(flat.shape, device=flat.device)
    sizes = torch.zeros(count, device=flat.device).scatter_add_(0, flat.to(torch.int64), ones)
    return order, where, sizes.to(torch.int64)


def _rows_of(weight: Tensor, scale: Tensor | None, rows: Tensor) -> Tensor:
    """Matrices [N, O, I] f32 of N rows of a stack."""
    return decode(_pick(weight, rows), None if scale is None else _pick(scale, rows))


def _pick(stored: Tensor, rows: Tensor) -> Tensor:
    """stored[rows]; one-byte floats as bytes, since not every generation knows them."""
    if stored.dtype.itemsize > 1:
        return stored.index_select(0, rows)
    return stored.view(torch.uint8).index_select(0, rows).view(stored.dtype)


def _each(x: Tensor, matrices: Tensor) -> Tensor:
    """[N, I] and [N, O, I] -> [N, O]."""
    return torch.bmm(matrices, x.unsqueeze(-1)).squeeze(-1)


def _add_by_expert(y: Tensor, x: Tensor, call: ExpertCall) -> None:
    """Each expert's own tokens, ascending; waits once for the device, to learn how many they are."""
    numbers = call.indices.flatten()
    order = ascending(numbers)[1]
    tokens = order // call.indices.shape[1]
    amounts = call.weights.flatten()[order].unsqueeze(-1)
    rows = torch.arange(call.count, device=x.device) if call.places is None else call.places
    begin = 0
    for size, row in loads(numbers, rows):
        part = slice(begin, begin + size)
        begin += size
        if size == 0 or row < 0:
            continue
        mine = tokens[part]
        y.index_add_(0, mine, _visit(x[mine], amounts[part], call, row))


def loads(numbers: Tensor, rows: Tensor) -> list[tuple[int, int]]:
    """How many choices each expert has, and its row of the stacks: asks the device."""
    table = torch.stack([torch.bincount(numbers, minlength=len(rows)), rows])
    return [(size, row) for size, row in table.transpose(0, 1).cpu().tolist()]


def hadamard(x: Tensor) -> Tensor:
    n = x.shape[-1]
    # The sign of entry (i, j) is the parity of the bits that i and j share.
    line = torch.arange(n, dtype=torch.int32, device=x.device)
    bits = line[:, None] & line
    for shift in (1 << i for i in range(n.bit_length().bit_length())):
        bits = bits ^ (bits >> shift)
    signs = (1 - 2 * (bits & 1)).to(torch.float32)
    return (x.float() @ signs * n**-0.5).to(x.dtype)


def _see(q: Tensor, kv: Tensor, rows: Tensor) -> attention_reference.Source:
    """All rows under a mask, unless they are so many that it pays to ask the device for the range."""
    few = kv.shape[1] <= _ALL_ROWS or q.shape[1] == 1
    return (attention_reference.whole if few else attention_reference.ranged)(q, kv, rows)


sparse_attention = partial(attention_reference.attend_in_blocks, _see)

# What a weight's format decides is here, the rest is the reference.
OWN = {
    "linear": linear,
    "grouped_linear": grouped_linear,
    "experts": of_call(_experts),
    "hadamard": hadamard,
    "sparse_attention": sparse_attention,
}
