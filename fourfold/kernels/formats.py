"""The stored number formats: the published ones, FP8 e4m3 blocks and FP4 e2m1 groups (MXFP4) with e8m0
scales, and those of the Ascend recipes, int8 and int4 with one scale per output channel.

In memory: FP8 float8_e4m3fn [O, I], scale [ceil(O/128), ceil(I/128)]; FP4 int8 [O, I/2], low nibble first,
scale [O, I/32]; int8 int8 [O, I], scale [O]; int4 uint8 [O/2, I], byte [o, i] holds channel 2o in its low and
2o + 1 in its high nibble, scale [O].  A channel's scale is float32, or int64 with the bits of the float32 in
its low half, as Ascend's products take it.

Decoding FP8 and FP4 to float32 is exact: every e4m3 or e2m1 value times a power of two is a float32.
Rounding (`round_fp8`, `round_fp4`) puts a float tensor on the same grids without packing it; it is what the
published model does to activations and to the KV cache, and what quantisation-aware training does to weights.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

FP8_BLOCK = 128
"""Edge of the square of FP8 weights that share one scale."""
FP4_GROUP = 32
"""Number of FP4 values along K that share one scale."""
KV_GROUP = 64
"""Number of values of a row of the KV cache that share one FP8 scale."""
ACTIVATION_GROUP = 128
"""Number of values of a product's input that share one FP8 scale."""
INT16_GROUP = 512
"""Number of values of a product's input that share the scale of their 16 bits."""
FP8_MAX = 448.0
FP4_MAX = 6.0
INT8_MAX, INT4_MAX = 127, 7
"""Largest codes that we write; -128 and -8 are read."""
INT16_MAX = 32639
"""127 * 256 + 127: the upper byte of the nearest multiple of 256 is a signed byte."""
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Value of the codes 0-7; code + 8 is its negative."""

# A stored matrix is decoded in slabs of rows of at most this many weights (64 MiB of float32), so that no
# head or expert ever lies in memory as a whole at four bytes a weight.
_DECODED_WEIGHTS = 1 << 24

# The published activation rounding never scales below this amplitude, so that silence stays silent.
_FP8_AMAX_FLOOR = 1e-4
_FP4_AMAX_FLOOR = FP4_MAX * 2.0**-126
_INT8_AMAX_FLOOR = 1e-30
# Near this number the spacing of float32 is 1: adding and taking it off rounds, and lets gradients pass.
_WHOLE = 1.5 * 2.0**23
_E4M3_SMALLEST = 2.0**-6  # normal value; those below share its spacing
_MANTISSA, _EXPONENT = 0x007FFFFF, 0x7F800000


class Rounding(Enum):
    """What happens to the input of a product before it: nothing, bfloat16, FP8 in groups of 128, int8 with
    one scale per token, int8 in groups of 32, or 16 bits in groups of 512.
    """

    NONE = 0
    BF16 = 1
    FP8 = 2
    INT8 = 3
    INT8_GROUPS = 4
    INT16_GROUPS = 5


def _byte_to_e4m3_table() -> Tensor:
    """In float32, by arithmetic: not every chip has the type."""
    code = torch.arange(128)
    exponent, mantissa = (code >> 3).float(), (code & 7).float()
    sizes = torch.where(code < 8, mantissa * 2.0**-9, (1 + mantissa / 8) * torch.exp2(exponent - 7))
    return torch.cat([sizes, -sizes])


def _byte_to_pair_table() -> Tensor:
    values = torch.tensor(E2M1_VALUES + tuple(-v for v in E2M1_VALUES))
    code = torch.arange(256)
    return torch.stack([values[code & 15], values[code >> 4]], dim=-1)


_BYTE_TO_PAIR = _byte_to_pair_table()
_BYTE_TO_E4M3 = _byte_to_e4m3_table()


def is_packed(weight: Tensor) -> bool:
    """True for every storage that needs a scale."""
    return weight.dtype in (torch.float8_e4m3fn, torch.int8, torch.uint8)


def is_integer(weight: Tensor, scale: Tensor | None) -> bool:
    """True for int8 and int4 storage.  Bytes with a scale of as many dims as the weight are FP4."""
    if scale is None or scale.dtype is torch.float8_e8m0fnu:
        return False
    return weight.dtype == torch.uint8 or (weight.dtype == torch.int8 and scale.dim() < weight.dim())


def in_features(weight: Tensor, scale: Tensor | None) -> int:
    """Logical I of a stored weight (FP4 holds two values of a row a byte)."""
    fp4 = weight.dtype == torch.int8 and not is_integer(weight, scale)
    return weight.shape[-1] * (2 if fp4 else 1)


def decode_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """weight [..., O, I] e4m3, scale [..., ceil(O/128), ceil(I/128)] e8m0 or f32 -> [..., O, I] float32."""
    rows, columns = weight.shape[-2:]
    spread = scale.to(torch.float32)
    spread = spread.repeat_interleave(FP8_BLOCK, dim=-2)[..., :rows, :]
    spread = spread.repeat_interleave(FP8_BLOCK, dim=-1)[..., :columns]
    return weight.to(torch.float32) * spread


def decode_fp4(weight: Tensor, scale: Tensor) -> Tensor:
    """weight [..., O, I/2] int8, low nibble first, scale [..., O, I/32] e8m0 -> [..., O, I] float32."""
    table = _BYTE_TO_PAIR.to(weight.device)
    pairs = table[weight.view(torch.uint8).to(torch.int32)]
    groups = pairs.reshape(*weight.shape[:-1], -1, FP4_GROUP)
    return (groups * scale.to(torch.float32).unsqueeze(-1)).flatten(-2)


def integer_codes(weight: Tensor) -> Tensor:
    """The codes of an int8 weight [..., O, I] or an int4 weight [..., O/2, I] as int8 [..., O, I]."""
    if weight.dtype == torch.int8:
        return weight
    pairs = weight.view(torch.int8)
    low, high = ((pairs & 15) ^ 8) - 8, pairs >> 4
    return torch.stack([low, high], dim=-2).flatten(-3, -2)


def channel_scale(scale: Tensor) -> Tensor:
    """The scales of an int8 or int4 weight, [..., O] float32 or int64, as float32."""
    return scale.view(torch.float32)[..., ::2] if scale.dtype == torch.int64 else scale


def decode(weight: Tensor, scale: Tensor | None) -> Tensor:
    """A stored weight of any format as float32."""
    if not is_packed(weight):
        return weight.to(torch.float32)
    assert scale is not None
    if weight.dtype == torch.float8_e4m3fn:
        return decode_fp8(weight, scale)
    if is_integer(weight, scale):
        return integer_codes(weight).to(torch.float32) * channel_scale(scale).unsqueeze(-1)
    return decode_fp4(weight, scale)


def row_slabs(weight: Tensor, scale: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """A matrix in parts of so many output channels that one may be decoded; a whole number of 128."""
    rows = max(128, _DECODED_WEIGHTS // in_features(weight, scale) // 128 * 128)
    pairs = 2 if weight.dtype == torch.uint8 else 1
    channels = weight.shape[0] * pairs
    if channels <= rows:
        return [(weight, scale)]
    step = FP8_BLOCK if weight.dtype == torch.float8_e4m3fn else 1
    slabs = []
    for start in range(0, channels, rows):
        part = None if scale is None else scale[start // step : -(-(start + rows) // step)]
        slabs.append((weight[start // pairs : (start + rows) // pairs], part))
    return slabs


def power_of_two_scale(amax: Tensor, limit: float) -> Tensor:
    """2^ceil(log2(amax / limit)), exactly: by the bits, since a logarithm may round across an integer."""
    ratio = amax.to(torch.float32) / limit
    # Any bit of the mantissa carries into the exponent; then the mantissa goes.
    power = ((ratio.view(torch.int32) + _MANTISSA) & ~_MANTISSA).view(torch.float32)
    return power.where(ratio.isfinite(), 1.0)  # else one infinity would make zeros of its group


def round_fp8(x: Tensor, group: int) -> Tensor:
    """x [..., I] on the e4m3 grid, one scale 2^ceil(log2(amax/448)) per `group` values along I; same dtype.

    A last group shorter than `group` has its own scale.  The published model uses 128 for activations, 64 for
    KV.
    """
    values, scale = _fp8_groups(x, group)
    return (values * scale).flatten(-2)[..., : x.shape[-1]].to(x.dtype)


def to_fp8(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """What `round_fp8` makes, apart: values of e4m3 [..., I], and their scales [..., ceil(I/group)]; float32
    both."""
    values, scale = _fp8_groups(x, group)
    return values.flatten(-2)[..., : x.shape[-1]], scale.squeeze(-1)


def _fp8_groups(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    grouped, _ = _in_groups(x, group)
    scale = power_of_two_scale(grouped.abs().amax(-1, keepdim=True).clamp_min(_FP8_AMAX_FLOOR), FP8_MAX)
    return round_to_e4m3(grouped / scale), scale


def to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., I] -> whole numbers of -127 to 127 [..., I], and their scale amax / 127 [..., 1]; float32 both.

    Ascend's dynamic quantisation per token.  Ties go to the even number.
    """
    values = x.to(torch.float32)
    scale = values.abs().amax(-1, keepdim=True) / INT8_MAX
    scale = scale.where(scale > 0, 1.0)  # a token of zeros: any scale does
    return (values / scale).round().clamp(-INT8_MAX, INT8_MAX), scale


def round_input(x: Tensor, rounding: Rounding) -> Tensor:
    """x [..., I] as a product takes it; same shape and dtype."""
    if rounding is Rounding.FP8:
        return round_fp8(x, ACTIVATION_GROUP)
    if rounding is Rounding.INT8:
        codes, scale = to_int8(x)
        return (codes * scale).to(x.dtype)
    if rounding is Rounding.INT8_GROUPS:
        return round_int8_groups(x)
    if rounding is Rounding.INT16_GROUPS:
        return round_int16_groups(x)
    return x.to(torch.bfloat16).to(x.dtype) if rounding is Rounding.BF16 else x


def round_fp4(x: Tensor, group: int = FP4_GROUP) -> Tensor:
    """x [..., I] on the e2m1 grid, one scale 2^ceil(log2(amax/6)) per `group` values along I; same dtype."""
    grouped, width = _in_groups(x, group)
    scale = power_of_two_scale(grouped.abs().amax(-1, keepdim=True).clamp_min(_FP4_AMAX_FLOOR), FP4_MAX)
    return (round_to_e2m1(grouped / scale) * scale).flatten(-2)[..., :width].to(x.dtype)


def row_bytes(width: int, last: int, bits: int) -> int:
    """Bytes of a row that `pack_rows` makes of `width` values."""
    body = width - last
    return body * bits // 8 + -(-body // _row_group(bits)) + 2 * last


def pack_rows(x: Tensor, last: int, bits: int) -> Tensor:
    """Rows as the published KV cache has them.  x [..., C] -> [..., row_bytes] uint8.

    All but the `last` values are rounded, to FP8 in groups of 64 or FP4 in groups of 32 (bits 8 or 4): first
    their codes, FP4 low nibble first, then a byte e8m0 for each group, 255 where it has a NaN; then the last
    values as bf16.
    """
    body, tail = x[..., : x.shape[-1] - last], x[..., x.shape[-1] - last :]
    group, largest, floor = _row_group(bits), FP8_MAX, _FP8_AMAX_FLOOR
    if bits == 4:
        largest, floor = FP4_MAX, _FP4_AMAX_FLOOR
    rounded = round_fp8(body, group) if bits == 8 else round_fp4(body, group)
    grouped, width = _in_groups(rounded, group)
    scale = power_of_two_scale(grouped.abs().amax(-1, keepdim=True).clamp_min(floor), largest)
    sizes = (grouped / scale).abs()
    codes = _e4m3_codes(sizes) if bits == 8 else _e2m1_codes(sizes)
    whole = ~grouped.isnan().any(-1, keepdim=True)
    signs = (grouped.view(torch.int32) < 0).to(torch.int32) * (1 << bits - 1)
    codes = (codes + signs).where(whole, 0).flatten(-2)[..., :width]
    if bits == 4:
        codes = codes[..., ::2] + codes[..., 1::2] * 16
    exponents = (scale.view(torch.int32) >> 23).where(whole, 255)
    parts = [codes.to(torch.uint8), exponents.squeeze(-1).to(torch.uint8)]
    return torch.cat([*parts, tail.to(torch.bfloat16).contiguous().view(torch.uint8)], dim=-1)


def unpack_rows(packed: Tensor, rows: Tensor, width: int, last: int, bits: int) -> Tensor:
    """Some of the rows that `pack_rows` made.  packed [L, row_bytes] uint8, rows [n] int64 -> [n, C] bf16."""
    raw = packed.index_select(0, rows)
    body, group = width - last, _row_group(bits)
    codes, exponents, tail = raw.split([body * bits // 8, -(-body // group), 2 * last], dim=-1)
    table = (_BYTE_TO_E4M3 if bits == 8 else _BYTE_TO_PAIR).to(packed.device)
    values, _ = _in_groups(table[codes.to(torch.int32)].flatten(1), group)
    scale = (exponents.to(torch.int32) * (1 << 23)).view(torch.float32).where(exponents != 255, torch.nan)
    decoded = (values * scale.unsqueeze(-1)).flatten(1)[:, :body].to(torch.bfloat16)
    if last == 0:
        return decoded
    return torch.cat(
        [decoded, tail.clone(memory_format=torch.contiguous_format).view(torch.bfloat16)], dim=-1
    )


def _row_group(bits: int) -> int:
    return KV_GROUP if bits == 8 else FP4_GROUP


def _e4m3_codes(sizes: Tensor) -> Tensor:
    """Of values that are on the grid and have no sign."""
    bits = sizes.view(torch.int32)
    small = (sizes.clamp_max(_E4M3_SMALLEST) * (8 / _E4M3_SMALLEST)).to(torch.int32)
    return torch.where(sizes < _E4M3_SMALLEST, small, (bits >> 20) - (120 << 3)) & 127


def _e2m1_codes(sizes: Tensor) -> Tensor:
    twice = 2 * sizes
    return (
        torch.where(twice < 4, twice, torch.where(twice < 8, twice / 2 + 2, twice / 4 + 4)).to(torch.int32)
        & 7
    )


def round_int8_groups(x: Tensor) -> Tensor:
    """x [..., I] as whole numbers from -127 to 127 times amax/127 of each 32 values along I; same dtype.

    The groups are those of FP4 weights: their doubled values are whole numbers too, and sums within a group
    are exact.  A group with an infinity or NaN is NaN.
    """
    grouped, width = _in_groups(x, FP4_GROUP)
    largest = grouped.abs().amax(-1, keepdim=True).clamp_min(_INT8_AMAX_FLOOR)
    whole = (grouped * (INT8_MAX / largest) + _WHOLE) - _WHOLE
    return (whole * (largest / INT8_MAX)).flatten(-2)[..., :width].to(x.dtype)


def round_int16_groups(x: Tensor) -> Tensor:
    """x [..., I] as whole numbers of up to 32639 times 2^ceil(log2(amax/32639)) of each 512 values along I;
    same dtype.

    Two signed bytes hold such a number, 256 times the one plus the other.  A group with an infinity or NaN is
    NaN.
    """
    grouped, width = _in_groups(x, INT16_GROUP)
    largest = grouped.abs().amax(-1, keepdim=True).clamp_min(_INT8_AMAX_FLOOR)
    scale = power_of_two_scale(largest, INT16_MAX).where(largest.isfinite(), torch.nan)
    return ((grouped / scale).round() * scale).flatten(-2)[..., :width].to(x.dtype)


def round_to_e4m3(x: Tensor) -> Tensor:
    """Nearest e4m3 value of x f32, ties to the even code; beyond 448 in amplitude that; f32.

    By arithmetic: not every chip has the type.
    """
    x = x.clamp(-FP8_MAX, FP8_MAX)
    power = (x.view(torch.int32) & _EXPONENT).view(torch.float32)
    step = power.clamp_min(_E4M3_SMALLEST) / 8
    rounded = ((x.abs() / step + _WHOLE) - _WHOLE) * step
    return torch.where(x.view(torch.int32) < 0, -rounded, rounded)  # zeros keep their sign


def round_to_e2m1(x: Tensor) -> Tensor:
    """Nearest e2m1 value, ties to the even code: the spacing is 1/2 below 2, 1 below 4, 2 above."""
    amplitude = x.abs()
    step = torch.where(amplitude < 2, 0.5, torch.where(amplitude < 4, 1.0, 2.0))
    return (torch.round(x / step) * step).clamp(-FP4_MAX, FP4_MAX)


def _in_groups(x: Tensor, group: int) -> tuple[Tensor, int]:
    width = x.shape[-1]
    values = x.to(torch.float32)
    if padding := -width % group:
        values = torch.nn.functional.pad(values, (0, padding))
    return values.unflatten(-1, (-1, group)), width
