"""Stored weights as floats, by whole-number arithmetic: A2 and A3 have neither FP8 nor FP4 nor their scales.

Equal to `fourfold.kernels.formats.decode` to the bit.  No tables: one that is made on the host would have to
be copied again in every call, and a graph cannot hold such a copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fourfold.kernels.formats import FP4_GROUP, FP8_BLOCK, is_integer
from fourfold.kernels.formats import decode as decode_others

_HALF = 0x3F000000  # 0.5 as float32


def decode(weight: Tensor, scale: Tensor | None) -> Tensor:
    """A stored weight of any format as float32.  Shapes as in `fourfold.kernels.linear`."""
    if weight.dtype == torch.float8_e4m3fn:
        assert scale is not None
        return _fp8(weight.view(torch.uint8), powers(scale))
    if weight.dtype == torch.int8 and not is_integer(weight, scale):
        assert scale is not None
        return _fp4(weight, powers(scale))
    return decode_others(weight, scale)


def powers(scale: Tensor) -> Tensor:
    """A scale as float32: e8m0 is the exponent field of one; float32 stays as it is."""
    if scale.dtype != torch.float8_e8m0fnu:
        return scale.to(torch.float32)
    exponent = scale.view(torch.uint8).to(torch.int32)
    smallest = 0x00400000  # 2^-127 is subnormal
    return torch.where(exponent == 0, smallest, exponent << 23).view(torch.float32)


def _fp8(codes: Tensor, scale: Tensor) -> Tensor:
    """codes [..., O, I] uint8, scale [..., ceil(O/128), ceil(I/128)] f32 -> [..., O, I] f32."""
    rows, columns = codes.shape[-2:]
    spread = scale.repeat_interleave(FP8_BLOCK, dim=-2)[..., :rows, :]
    return _e4m3(codes.to(torch.int32)) * spread.repeat_interleave(FP8_BLOCK, dim=-1)[..., :columns]


def _e4m3(code: Tensor) -> Tensor:
    amplitude = code & 0x7F
    # The fields move to where float32 has them and the exponent's bias grows from 7 to 127; below the
    # smallest normal value a code counts steps of 2^-9.
    normal = ((amplitude << 20) + (120 << 23)).view(torch.float32)
    value = torch.where(amplitude < 8, amplitude.to(torch.float32) * 2.0**-9, normal)
    value = value.masked_fill(amplitude == 0x7F, torch.nan)
    return torch.where(code > 0x7F, -value, value)


def _fp4(pairs: Tensor, scale: Tensor) -> Tensor:
    """pairs [..., O, I/2] int8, low nibble first, scale [..., O, I/32] f32 -> [..., O, I] f32."""
    pair = pairs.to(torch.int32)
    values = _e2m1(torch.stack([pair, pair >> 4], dim=-1).flatten(-2))
    return (values.unflatten(-1, (-1, FP4_GROUP)) * scale.unsqueeze(-1)).flatten(-2)


def _e2m1(code: Tensor) -> Tensor:
    """The low nibble of each as float32."""
    amplitude = code & 7
    # As for e4m3, from bias 1; codes 0 and 1 are 0 and 0.5.
    bits = torch.where(amplitude < 2, amplitude * _HALF, (amplitude << 22) + _HALF)
    return torch.where((code & 8) == 0, bits, bits | -(1 << 31)).view(torch.float32)
