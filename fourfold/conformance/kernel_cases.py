"""Inputs for every operation of the contract: several shapes and formats each, and how near a kernel must be.

Where a choice is made (routing, index selection) the inputs are small integers, so that every product and sum
is exact in float32 on any chip: ties are then real, and the order in which they are broken must match to the
bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fourfold.kernels.formats import Rounding, pack_rows
from fourfold.weights.formats import pack_int4, scale_bits

# Errors are read against the rms of the reference's result.
F32 = 2e-5  # sums in another order
BLOCK = 1e-4  # the same through several operations, one after the other
BF16 = 2e-2  # one step of bf16 at the largest values
# A rounding inside that falls the other way for a few values.  One step of bf16, 2^-7, of the largest of
# 64 to 256 inputs (4 rms) times the largest weight (3 rms) is up to 0.02 of the rms of a product.
FLIPS = 2e-2
# The same before SwiGLU, which multiplies two such products, and in a token whose result is a few times
# the rms of all.  With its inputs changed by 2^-23 the reference differs from itself by up to 0.12, and by
# more than 0.02 in every fourth draw of 18 tokens; the native kernels do in as many.
BLOCK_FLIPS = 0.2
SUMS = 0.5  # the same for many, where what is rounded was rounded to bf16 before
SAME = 0.0  # bits must match

NONE, FP8, INT8 = Rounding.NONE, Rounding.FP8, Rounding.INT8
INT8_GROUPS, INT16_GROUPS = Rounding.INT8_GROUPS, Rounding.INT16_GROUPS
_MIXING = {"iters": 20, "norm_eps": 1e-6, "eps": 1e-6}


@dataclass(frozen=True)
class Case:
    """One call of one operation, inputs on the CPU."""

    operation: str
    label: str
    arguments: tuple[Any, ...]
    bound: float
    options: dict[str, Any] = field(default_factory=dict)


class Draw:
    """Random inputs, the same on every machine."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers from low to high - 1, int64."""
        return torch.randint(low, high, shape, generator=self.generator)

    def stored(self, format: str, *shape: int) -> tuple[Tensor, Tensor | None]:
        """A weight [..., O, I] of about unit scale as a checkpoint stores it, and its scale."""
        *lead, rows, columns = shape
        if format == "f32":
            return self.normal(*shape), None
        if format == "bf16":
            return self.normal(*shape, dtype=torch.bfloat16), None
        if format == "fp8":
            codes = self.normal(*shape).mul(64).clamp(-448, 448).to(torch.float8_e4m3fn)
            return codes, self._scale(*lead, -(-rows // 128), -(-columns // 128), low=119)
        if format in ("int8", "int4"):
            largest, step = (127, 0.01) if format == "int8" else (7, 0.2)
            codes = self.integers(-largest, largest + 1, *shape).to(torch.int8)
            scale = (self.normal(*lead, rows).abs() + 0.5) * step
            if format == "int8":
                return codes, scale
            return pack_int4(codes.flatten(0, -2)).unflatten(0, (*lead, rows // 2)), scale_bits(scale)
        codes = self.integers(-128, 128, *lead, rows, columns // 2).to(torch.int8)
        low, count = (112, 16) if format == "fp4 wide" else (124, 4)
        return codes, self._scale(*lead, rows, columns // 32, low=low, count=count)

    def _scale(self, *shape: int, low: int, count: int = 4) -> Tensor:
        return self.integers(low, low + count, *shape).to(torch.uint8).view(torch.float8_e8m0fnu)


def cases(seed: int = 0) -> Iterator[Case]:
    """Every case of every operation, in the order of the contract."""
    draw = Draw(seed)
    for family in _FAMILIES:
        yield from family(draw)


def _linear(draw: Draw) -> Iterator[Case]:
    for format in ("f32", "bf16", "fp8", "fp4"):
        for tokens, columns, rows in ((1, 256, 192), (3, 512, 130), (37, 128, 384)):
            arguments = (draw.normal(tokens, columns), *draw.stored(format, rows, columns))
            label = f"{format} [{tokens}, {columns}] -> {rows}"
            yield Case("linear", label, arguments, F32)
            yield Case("linear", f"{label}, bf16 products", (*arguments, Rounding.BF16), F32)
            yield Case("linear", f"{label}, fp8 inputs", (*arguments, Rounding.FP8), F32)
            if format == "fp4":
                yield Case("linear", f"{label}, int8 inputs", (*arguments, INT8_GROUPS), F32)
                yield Case("linear", f"{label}, int16 inputs", (*arguments, INT16_GROUPS), F32)
    arguments = (draw.normal(5, 256, dtype=torch.bfloat16), *draw.stored("fp8", 128, 256))
    yield Case("linear", "fp8 bf16 input", arguments, BF16)
    for format in ("int8", "int4"):
        for tokens, columns, rows in ((1, 256, 192), (37, 1280, 130)):
            arguments = (draw.normal(tokens, columns), *draw.stored(format, rows, columns))
            label = f"{format} [{tokens}, {columns}] -> {rows}"
            yield Case("linear", label, arguments, F32)
            yield Case("linear", f"{label}, int8 inputs", (*arguments, INT8), F32)


def _grouped_linear(draw: Draw) -> Iterator[Case]:
    for format in ("f32", "bf16", "fp8"):
        for tokens, groups in ((1, 2), (9, 4)):
            weight, scale = draw.stored(format, groups * 128, 256)
            arguments = (draw.normal(2, tokens, groups, 256), weight, scale, groups)
            label = f"{format} {groups} groups, {tokens} tokens"
            yield Case("grouped_linear", label, arguments, F32)
            yield Case("grouped_linear", f"{label}, bf16 products", (*arguments, Rounding.BF16), F32)
    for format in ("int8", "int4"):
        arguments = (draw.normal(2, 3, 2, 256), *draw.stored(format, 2 * 128, 256), 2)
        yield Case("grouped_linear", format, arguments, F32)
        yield Case("grouped_linear", f"{format}, int8 inputs", (*arguments, INT8), F32)


def _experts(draw: Draw) -> Iterator[Case]:
    for format in ("f32", "fp8", "fp4", "int8", "int4"):
        narrow = {"fp4": (FP8, INT8_GROUPS), "int8": (INT8,), "int4": (INT8,)}.get(format, (FP8,))
        packed = ((tokens, rounding) for rounding in narrow for tokens in (1, 19))
        for tokens, rounding in ((1, NONE), (19, NONE), (19, Rounding.BF16), *packed):
            indices = torch.stack([torch.randperm(8, generator=draw.generator)[:3] for _ in range(tokens)])
            x = draw.normal(tokens, 256) / 16
            weights = draw.normal(tokens, 3).abs()
            w1, s1 = draw.stored(format, 8, 128, 256)
            w3, s3 = draw.stored(format, 8, 128, 256)
            w2, s2 = draw.stored(format, 8, 256, 128)
            given = (x, indices, weights, w1, s1, w3, s3, w2, s2, 10.0)
            for each in (rounding, INT16_GROUPS) if rounding is INT8_GROUPS else (rounding,):
                label = f"{format} {tokens} tokens, inputs {each.name.lower()}"
                yield Case("experts", label, (*given, each), F32 if each is NONE else FLIPS)
        if format == "fp4":
            published = (x.to(torch.bfloat16), *given[1:], FP8)
            yield Case("experts", f"fp4 {tokens} tokens of bfloat16, inputs fp8", published, SUMS)
        places = torch.tensor([3, -1, 0, 2, -1, 1, 5, 4])
        elsewhere = (x, indices, weights, w1, s1, w3, s3, w2, s2, 10.0, NONE, places)
        yield Case("experts", f"{format} {tokens} tokens, some experts elsewhere", elsewhere, F32)


def _route(draw: Draw) -> Iterator[Case]:
    for tokens, experts, k in ((1, 8, 2), (33, 64, 6)):
        x = draw.integers(-2, 3, tokens, 32).float()
        weight = draw.integers(-2, 3, experts, 32).float()
        bias = draw.integers(0, 2, experts).float()
        yield Case("route_topk", f"{tokens} tokens, {k} of {experts}, ties", (x, weight, bias, k, 1.5), F32)
        chosen = draw.integers(0, experts, tokens, k)
        arguments = (draw.normal(tokens, 96), draw.normal(experts, 96), chosen, 2.5)
        yield Case("route_hash", f"{tokens} tokens, {k} of {experts}", arguments, F32)


def _rms_norm(draw: Draw) -> Iterator[Case]:
    for dtype, bound in ((torch.float32, F32), (torch.bfloat16, BF16)):
        for weight in (draw.normal(192), None):
            label = f"{str(dtype).removeprefix('torch.')}{'' if weight is not None else ', no weight'}"
            yield Case("rms_norm", label, (draw.normal(2, 7, 192, dtype=dtype), weight, 1e-6), bound)


def _rope(draw: Draw) -> Iterator[Case]:
    angles = draw.normal(2, 7, 32) * 100
    for inverse in (False, True):
        for shape in ((2, 7, 3, 128), (2, 7, 128)):
            arguments = (draw.normal(*shape), angles.cos(), angles.sin(), inverse)
            yield Case("rope", f"{len(shape)} dims{', inverse' if inverse else ''}", arguments, F32)
    x = draw.normal(2, 7, 3, 128, dtype=torch.bfloat16)
    yield Case("rope", "bfloat16", (x, angles.cos(), angles.sin(), False), BF16)


def _pool(draw: Draw) -> Iterator[Case]:
    for tokens in (8, 128):
        scores = draw.normal(2, 3, tokens, 96)
        scores[:, 0, : tokens // 2] = float("-inf")  # the first block has none before it
        yield Case("pool", f"{tokens} tokens a block", (draw.normal(2, 3, tokens, 96), scores), F32)


def _hadamard(draw: Draw) -> Iterator[Case]:
    for width in (32, 128):
        yield Case("hadamard", f"width {width}", (draw.normal(3, 5, width),), F32)
    yield Case("hadamard", "bfloat16", (draw.normal(3, 5, 128, dtype=torch.bfloat16),), BF16)


def _index_topk(draw: Draw) -> Iterator[Case]:
    for tokens, entries, k in ((1, 40, 8), (5, 300, 16), (3, 4, 8)):
        q = draw.integers(-2, 3, 1, tokens, 4, 64).float()
        keys = draw.integers(-2, 3, 1, entries, 64).float()
        weights = draw.integers(-1, 3, 1, tokens, 4).float()
        visible = torch.tensor([[[0, entries - tokens + t + 1] for t in range(tokens)]])
        label = f"{k} of {entries}, {tokens} queries, ties"
        yield Case("index_topk", label, (q, weights, keys, visible, k), SAME)
        half = (q.to(torch.bfloat16), weights, keys.to(torch.bfloat16), visible, k)
        yield Case("index_topk", f"{label}, bfloat16", half, SAME)


def _sparse_attention(draw: Draw) -> Iterator[Case]:
    for source in ("window", "window and all entries", "window and chosen entries"):
        for dtype, bound in ((torch.float32, F32), (torch.bfloat16, BF16)):
            tokens, heads, width, held, entries = 6, 4, 96, 20, 30
            q = draw.normal(2, tokens, heads, width, dtype=dtype)
            window = draw.normal(2, held, width, dtype=dtype)
            ends = torch.arange(held - tokens + 1, held + 1)
            rows = torch.stack([ends - 12, ends], dim=-1).expand(2, tokens, 2)
            stored = draw.normal(2, entries, width, dtype=dtype) if "entries" in source else None
            seen = torch.stack([torch.zeros(tokens, dtype=torch.int64), torch.arange(tokens) * 5], dim=-1)
            reach = seen.expand(2, tokens, 2) if source.endswith("all entries") else None
            index = _choices(draw, tokens, entries) if source.endswith("chosen entries") else None
            arguments = (q, window, rows, stored, reach, index, draw.normal(heads), width**-0.5)
            label = f"{source}, {str(dtype).removeprefix('torch.')}"
            yield Case("sparse_attention", label, arguments, bound)
            rounded = (*arguments, Rounding.BF16)
            both = FLIPS if dtype is torch.float32 else FLIPS + BF16
            yield Case("sparse_attention", f"{label}, bf16 products", rounded, both)
        # The cache is bf16 and the queries are not.
        mixed = (q.float(), *arguments[1:], Rounding.BF16)
        yield Case("sparse_attention", f"{source}, float32 queries of bfloat16, bf16 products", mixed, FLIPS)


def _choices(draw: Draw, tokens: int, entries: int) -> Tensor:
    """[2, T, 7] ascending entry numbers, the first query with fewer."""
    rows = [torch.randperm(entries, generator=draw.generator)[:7].sort().values for _ in range(2 * tokens)]
    index = torch.stack(rows).view(2, tokens, 7)
    index[:, 0, 3:] = -1
    return index


def _hyper_connections(draw: Draw) -> Iterator[Case]:
    for batch, tokens in ((1, 1), (2, 9)):
        n, width = 4, 96
        streams = draw.normal(batch, tokens, n, width)
        fn = draw.normal((2 + n) * n, n * width) / 8
        mixing = (streams, fn, draw.normal(3), draw.normal((2 + n) * n))
        label = f"{batch} x {tokens} tokens"
        yield Case("hc_pre", label, mixing, F32, dict(_MIXING))
        half = (streams.to(torch.bfloat16), *mixing[1:])
        yield Case("hc_pre", f"{label}, bfloat16", half, BF16, dict(_MIXING))
        comb = draw.normal(batch, tokens, n, n).softmax(-1)
        output = draw.normal(batch, tokens, width)
        back = (output, streams, draw.normal(batch, tokens, n), comb)
        yield Case("hc_post", label, back, F32)
        half_back = (output.to(torch.bfloat16), streams.to(torch.bfloat16), *back[2:])
        yield Case("hc_post", f"{label}, bfloat16", half_back, BF16)
        entry = (*mixing[1:], draw.normal(width))
        yield Case("hc_input", label, (streams, entry), F32, dict(_MIXING))
        yield Case("hc_input", f"{label}, bfloat16", (half[0], entry), BF16, dict(_MIXING))
        yield Case("hc_next", label, (*back, entry), F32, dict(_MIXING))
        yield Case("hc_next", f"{label}, bfloat16", (*half_back, entry), BF16, dict(_MIXING))
        head = (streams, draw.normal(n, n * width) / 8, draw.normal(1), draw.normal(n))
        yield Case("hc_head", label, head, F32, {"norm_eps": 1e-6, "eps": 1e-6})


def _rounding(draw: Draw) -> Iterator[Case]:
    for operation, groups in (("round_fp8", (64, 128)), ("round_fp4", (32,))):
        for group in groups:
            for dtype in (torch.float32, torch.bfloat16):
                # Amplitudes from denormal to huge, a group of zeros, and a last group that is short.
                x = draw.normal(9, 2 * group + group // 2) * 10.0 ** torch.arange(-6.0, 3.0).unsqueeze(1)
                x[4] = 0.0
                label = f"groups of {group}, {str(dtype).removeprefix('torch.')}"
                yield Case(operation, label, (x.to(dtype), group), SAME)


def _packing(draw: Draw) -> Iterator[Case]:
    # Rows of entries, of few values whose last group is short, and of index keys.
    for width, last, bits in ((512, 64, 8), (100, 8, 8), (128, 0, 4)):
        for dtype in (torch.float32, torch.bfloat16):
            x = draw.normal(9, width) * 10.0 ** torch.arange(-6.0, 3.0).unsqueeze(1)
            x[4] = 0.0
            label = f"{width} values, {bits} bits, {str(dtype).removeprefix('torch.')}"
            yield Case("pack_rows", label, (x.to(dtype), last, bits), SAME)
        packed = pack_rows(x, last, bits)
        chosen = draw.integers(0, 9, 20)
        yield Case("unpack_rows", label, (packed, chosen, width, last, bits), SAME)


def _attention_layer(draw: Draw) -> Iterator[Case]:
    heads, width, rank, model, groups, m = 4, 64, 128, 256, 2, 4
    for tokens in (1, 9):
        angles = draw.normal(2, tokens, 16) * 100
        turn = angles.cos(), angles.sin()
        positions = draw.integers(0, 1000, 2, tokens)
        ends = torch.arange(20 - tokens + 1, 21).expand(2, tokens)
        for rounding, bound in ((NONE, F32), (Rounding.BF16, FLIPS)):
            label = f"2 x {tokens} tokens, inputs {rounding.name.lower()}"
            x = draw.normal(2, tokens, model)
            streams, entry = draw.normal(2, tokens, 4, model), _entry(draw, 4, model)
            wq_a, wq_b = draw.stored("fp8", rank, model), draw.stored("fp8", heads * width, rank)
            wkv = draw.stored("fp8", width, model)
            norms = draw.normal(rank), draw.normal(width)
            arguments = (streams, entry, wq_a, norms[0], wq_b, wkv, norms[1], *turn, heads, (rounding,) * 3)
            small, large = (
                (draw.stored("bf16", size, model), draw.stored("bf16", size, model), draw.normal(m, size))
                for size in (32, width)
            )
            stacks = tuple(draw.stored("fp4", 4, *shape) for shape in ((64, 256), (64, 256), (256, 64)))
            alone = tuple(draw.stored("fp8", *shape) for shape in ((64, 256), (64, 256), (256, 64)))
            known = draw.integers(0, 4, 2 * tokens, 1)
            experts = (draw.normal(4, 256), None, known, 1, 1.5, stacks, alone, 10.0, (rounding,) * 2)
            yield Case("compressor_inputs", label, (x, large, positions, rounding), F32)
            yield Case("index_queries", label, _index_arguments(draw, x, turn, rounding), bound)
            queries, window = draw.normal(2, tokens, heads, width), draw.normal(2, 20, width)
            wo_a = draw.stored("fp8", groups * 128, heads * width // groups)
            wo_b = draw.stored("fp8", model, groups * 128)
            output = (rounding, *turn, wo_a, groups, wo_b, (rounding,) * 2)
            for entries in (None, draw.normal(2, 7, width)):
                rows = torch.stack([ends - 12, ends], dim=-1)
                seen = None if entries is None else rows.clamp_max(7)
                sources = (window, rows, entries, seen, None, draw.normal(heads), width**-0.5)
                source = "window" if entries is None else "window and entries"
                yield Case("attention", f"{label}, {source}", (queries, *sources, *output), bound)
                for count, compressors in enumerate(((), (large,), (large, small))):
                    inputs = (*arguments, compressors, positions, rounding)
                    name = f"{label}, {count} compressors"
                    yield Case("attention_inputs", name, inputs, max(bound, BLOCK), dict(_MIXING))
                    slots = (
                        draw.normal(2, tokens, width),
                        *(draw.normal(2, tokens, n) for n in (128, 64)[:count]),
                    )
                    block = (streams, inputs[1:], slots, (*sources, *output), _entry(draw, 4, model), experts)
                    whole = BLOCK if rounding is NONE else BLOCK_FLIPS
                    yield Case("block", f"{name}, {source}", block, whole, dict(_MIXING))


def _index_arguments(
    draw: Draw, x: Tensor, turn: tuple[Tensor, Tensor], rounding: Rounding
) -> tuple[Any, ...]:
    heads, width, rank = 3, 64, 128
    to_q, to_weights = draw.stored("fp8", heads * width, rank), draw.stored("bf16", heads, x.shape[-1])
    qr = draw.normal(*x.shape[:-1], rank)
    return x, qr, to_q, to_weights, heads, *turn, 0.0625, (rounding, rounding)


def _compressor_entries(draw: Draw) -> Iterator[Case]:
    width, ratio = 48, 4
    angles = draw.normal(2, 3, 16) * 100
    turn = angles.cos(), angles.sin()
    for overlapping in (False, True):
        reach, channels = (2 * ratio, 2 * width) if overlapping else (ratio, width)
        tokens = torch.stack([torch.arange(reach) + ratio * block for block in range(3)]).repeat(2, 1, 1)
        if overlapping:
            tokens[0, 0, :ratio] = -1  # the first block has none before it
        label = "overlapping blocks" if overlapping else "blocks"
        for gap in (0, 5):
            pending = draw.normal(2, 20, 2 * channels + gap)[..., : 2 * channels]
            arguments = (pending, tokens, draw.normal(width), *turn, overlapping, 1e-6)
            yield Case("compressor_entries", f"{label}, rows {gap} apart", arguments, F32)


def _entry(draw: Draw, n: int, width: int) -> tuple[Tensor, ...]:
    """fn, scale, base and a norm's weight."""
    size = (2 + n) * n
    return draw.normal(size, n * width) / 8, draw.normal(3), draw.normal(size), draw.normal(width)


def _mixture(draw: Draw) -> Iterator[Case]:
    for routed, shared in (("fp4", "fp8"), ("bf16", "bf16"), ("fp8", "f32")):
        for tokens, rounding in ((1, NONE), (9, NONE), (9, Rounding.BF16), (9, FP8)):
            x = draw.integers(-2, 3, 2, tokens, 256).float() / 16
            stacks = tuple(draw.stored(routed, 8, *shape) for shape in ((128, 256), (128, 256), (256, 128)))
            alone = tuple(draw.stored(shared, *shape) for shape in ((128, 256), (128, 256), (256, 128)))
            bound = F32 if rounding is NONE else FLIPS
            label = f"{routed} and {shared}, 2 x {tokens} tokens, inputs {rounding.name.lower()}"
            router, bias = draw.integers(-2, 3, 8, 256).float() / 16, draw.integers(0, 2, 8).float()
            known = torch.stack([torch.randperm(8, generator=draw.generator)[:3] for _ in range(2 * tokens)])
            own = NONE if shared == "f32" else rounding
            rest = (3, 1.5, stacks, alone, 10.0, (rounding, own))
            yield Case("moe", f"{label}, by score", (x, router, bias, None, *rest), bound)
            yield Case("moe", f"{label}, known", (x, router, None, known, *rest), bound)
            back = (draw.normal(2, tokens, 4), draw.normal(2, tokens, 4, 4).softmax(-1), _entry(draw, 4, 256))
            block = (x, draw.normal(2, tokens, 4, 256), *back, (router, None, known, *rest))
            chain = F32 if rounding is NONE else BLOCK_FLIPS
            yield Case("hc_moe", f"{label}, known", block, chain, dict(_MIXING))
            yield Case("shared_expert", label, (x.flatten(0, 1), alone, 10.0, own), bound)


def _wide_scales(draw: Draw) -> Iterator[Case]:
    """FP4 whose neighbouring groups differ by more than whole numbers of a byte can."""
    roundings = (NONE, Rounding.BF16, INT8_GROUPS, INT16_GROUPS)
    for tokens, columns, rows in ((1, 2048, 65), (3, 544, 130), (19, 1056, 96)):
        x, stored = draw.normal(tokens, columns), draw.stored("fp4 wide", rows, columns)
        for rounding in roundings:
            label = f"fp4 of wide scales [{tokens}, {columns}] -> {rows}, inputs {rounding.name.lower()}"
            yield Case("linear", label, (x, *stored, rounding), F32)


_FAMILIES: tuple[Callable[[Draw], Iterator[Case]], ...] = (
    _linear,
    _grouped_linear,
    _experts,
    _route,
    _rms_norm,
    _rope,
    _pool,
    _hadamard,
    _index_topk,
    _sparse_attention,
    _hyper_connections,
    _rounding,
    _packing,
    _attention_layer,
    _compressor_entries,
    _mixture,
    _wide_scales,
)
