"""Storage formats of a weight: what a header says, float -> FP8 / FP4 / int8 / int4, FP8 without loss.

FP8: e4m3, one e8m0 scale 2^ceil(log2(amax / 448)) per 128x128 block.  FP4: e2m1 in pairs, low nibble
first, one e8m0 scale 2^ceil(log2(amax / 6)) per 32 values along I.  int8, int4: one float32 scale per output
channel, symmetric; int4 in pairs of channels, low nibble first.  Rounding is to nearest, ties to even.
Decoding is in fourfold.kernels.formats.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from fourfold.errors import CheckpointError
from fourfold.kernels.formats import (
    FP4_GROUP,
    FP4_MAX,
    FP8_BLOCK,
    FP8_MAX,
    decode_fp8,
    power_of_two_scale,
)

Format = Literal["fp4", "fp8", "int8", "int4", "bf16", "f32", "int"]
"""How a header stores a weight; "int" are whole numbers (token -> expert), int8 and int4 codes of reals."""

E8M0_BIAS = 127
E8M0_NAN = 255
_MANTISSA_BITS = 23
_SMALLEST_SCALE, _LARGEST_SCALE = 2.0**-126, 2.0**127  # e8m0's 2^-127 is subnormal in float32: not used
# A value belongs to the first code whose border it does not exceed.  A tie goes to the even code, which is
# the lower one at every other border; at the others the border is a hair below the tie.
_E2M1_BORDERS = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
_E2M1_BORDERS[1::2] = torch.nextafter(_E2M1_BORDERS[1::2], torch.zeros(3))


def encode_e8m0(scale: Tensor) -> Tensor:
    """Float32 powers of two in e8m0's range -> float8_e8m0fnu of the same shape, exactly."""
    return _exponents(scale).to(torch.uint8).view(torch.float8_e8m0fnu)


def is_e8m0(scale: Tensor) -> bool:
    """True if every value of a float32 scale is a power of two that e8m0 holds."""
    exponent = _exponents(scale)
    exact = scale.to(torch.float32).view(torch.int32) == exponent << _MANTISSA_BITS
    return bool((exact & (exponent > 0) & (exponent < E8M0_NAN)).all())


def _exponents(scale: Tensor) -> Tensor:
    """The exponent field of positive float32 values: of a normal power of two, its e8m0 code."""
    return scale.to(torch.float32).view(torch.int32) >> _MANTISSA_BITS


def scale_shape(shape: tuple[int, ...], fmt: Format) -> tuple[int, ...] | None:
    """Shape of the scale of a weight of logical `shape` [O, I]; None for formats without one.

    int8, int4: [O, 1], as the Ascend recipes store it; [O] in memory.
    """
    if fmt == "fp8":
        return (-(-shape[0] // FP8_BLOCK), -(-shape[1] // FP8_BLOCK))
    if fmt == "fp4":
        return (shape[0], shape[1] // FP4_GROUP)
    if fmt in ("int8", "int4"):
        return (shape[0], 1)
    return None


def stored_shape(shape: tuple[int, ...], fmt: Format) -> tuple[int, ...]:
    """Shape of the bytes of a weight of logical `shape` [O, I]."""
    if fmt == "fp4":
        return (shape[0], shape[1] // 2)
    return (shape[0] // 2, shape[1]) if fmt == "int4" else shape


def encode_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [..., O, I] float -> ([..., O, I] e4m3, [..., ceil(O/128), ceil(I/128)] e8m0)."""
    rows, columns = weight.shape[-2:]
    blocks = _in_blocks(weight.to(torch.float32))
    scale = _scale(blocks.abs().amax((-3, -1)), FP8_MAX)
    scaled = blocks / scale[..., :, None, :, None]
    values = scaled.to(torch.float8_e4m3fn).flatten(-4, -3).flatten(-2)
    return values[..., :rows, :columns].contiguous(), encode_e8m0(scale)


def encode_fp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [..., O, I] float, I a multiple of 32 -> ([..., O, I/2] int8, [..., O, I/32] e8m0)."""
    groups = _split(weight.to(torch.float32), -1, FP4_GROUP)
    scale = _scale(groups.abs().amax(-1), FP4_MAX)
    values = (groups / scale[..., None]).flatten(-2)
    code = torch.bucketize(values.abs(), _E2M1_BORDERS, out_int32=True).to(torch.uint8)
    code |= torch.signbit(values).to(torch.uint8) << 3
    packed = code[..., 0::2] | (code[..., 1::2] << 4)
    return packed.view(torch.int8), encode_e8m0(scale)


def encode_integer(weight: Tensor, scale: Tensor, largest: int) -> Tensor:
    """round(weight / scale), at most `largest`, as int8.  weight [O, I] f32, scale [O] f32 -> [O, I]."""
    codes = weight.to(torch.float32) / scale.unsqueeze(-1)
    return codes.round_().clamp_(-largest, largest).to(torch.int8)


def pack_int4(codes: Tensor) -> Tensor:
    """Codes of -8 to 7, int8 [O, I], O even -> uint8 [O/2, I]: channel 2o in the low nibble of byte [o, i],
    2o + 1 in the high one.
    """
    low, high = codes.view(torch.uint8).unflatten(0, (-1, 2)).unbind(1)
    return (low & 15) | (high << 4)


def scale_bits(scale: Tensor) -> Tensor:
    """float32 [O] -> int64 [O] with its bits in the low half, as Ascend's int4 products take scales."""
    return scale.to(torch.float32).view(torch.int32).to(torch.int64)


def int4_assist(codes: Tensor, scale: Tensor) -> Tensor:
    """8 · scale_o · Σ_i codes[o, i], which Ascend's W4A8 products add.  int8 [O, I], f32 [O] -> [O] f32."""
    return codes.sum(-1, dtype=torch.int64).to(torch.float32) * scale * 8


def encode_fp8_exactly(values: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """values [O, I] float32 -> FP8 as `encode_fp8`, every bit of every value kept.

    The values of an FP4 weight fit wherever its scales are powers of two that do not lie too far apart
    inside a 128x128 block.  Raises CheckpointError naming tensor `name` and the first block that would
    change.
    """
    weight, scale = encode_fp8(values)
    decoded = decode_fp8(weight, scale)
    changed = decoded.view(torch.int32) != values.view(torch.int32)
    blocks = _in_blocks(changed.to(torch.uint8)).amax((-3, -1)).nonzero()
    if len(blocks):
        row, column = (FP8_BLOCK * i for i in blocks[0].tolist())
        block = slice(row, row + FP8_BLOCK), slice(column, column + FP8_BLOCK)
        rows, columns = values[block].shape
        before, after = (x[block][changed[block]][0].item() for x in (values, decoded))
        raise CheckpointError(
            f"{name}: cannot become FP8 without loss in {len(blocks)} of its 128x128 blocks, first rows "
            f"{row}-{row + rows - 1}, columns {column}-{column + columns - 1}, where {before:g} would become "
            f"{after:g}. Keep the experts in fp4 or export them as bf16"
        )
    return weight, scale


def _scale(amax: Tensor, limit: float) -> Tensor:
    # A block of zeros: any scale does; 1 keeps it out of the way of everything that looks at scales.
    scale = power_of_two_scale(amax.where(amax > 0, limit), limit)
    return scale.clamp(_SMALLEST_SCALE, _LARGEST_SCALE)


def _split(x: Tensor, dim: int, size: int) -> Tensor:
    return x.unflatten(dim, (-1, size))


def _in_blocks(x: Tensor) -> Tensor:
    """[..., O, I] -> [..., ceil(O/128), 128, ceil(I/128), 128], padded with zeros."""
    rows, columns = x.shape[-2:]
    if rows % FP8_BLOCK or columns % FP8_BLOCK:
        x = pad(x, (0, -columns % FP8_BLOCK, 0, -rows % FP8_BLOCK))
    return _split(_split(x, -2, FP8_BLOCK), -1, FP8_BLOCK)
