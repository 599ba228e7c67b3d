"""Float -> int8 or int4 with one scale per output channel, its range chosen by search.

A channel o has codes round(w / s), clamped to ±n, with s = r · amax_o / n and n = 127 or 7.  The clip ratio
r comes from a grid, 0.7 to 1.3 in steps of 0.01, and makes Σ_i h_i (w_i - s · code_i)² smallest; h_i is 1,
or the mean square of input i over a text (fourfold.calibration).  One more candidate is the power of two
that just does not clip: int8 then holds an FP4 channel without loss, if its scales lie within a factor of 8.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from fourfold.errors import CheckpointError
from fourfold.kernels.formats import INT4_MAX, INT8_MAX, power_of_two_scale
from fourfold.weights.formats import Format, encode_integer, int4_assist, pack_int4, scale_bits

CLIP_RATIOS = (1.0, *(i / 100 for i in range(70, 131) if i != 100))
"""No clipping first: only a smaller error is worth another ratio."""
_BLOCK = 1 << 20  # values that are searched at once: some tens of MiB with all that is computed of them
_BF16_MAGNITUDES = 1 << 15


@dataclass(frozen=True)
class TensorError:
    """What storing a matrix in `format` costs: |W - Ŵ| / |W|, Frobenius norms, and the same without clipping.

    weighted, weighted_unclipped: with the columns weighted by the inputs they meet, if these are known.
    clip: mean ratio of the channels.  All but `error` are None for bf16.
    """

    name: str
    format: Format
    error: float
    unclipped: float | None = None
    weighted: float | None = None
    weighted_unclipped: float | None = None
    clip: float | None = None

    def to_json(self) -> dict[str, str | float | None]:
        """As a JSON object; keys are the fields."""
        return asdict(self)


@dataclass(frozen=True)
class Quantised:
    """A matrix as the recipes store it: int8 [O, I], scale [O, 1] f32; or int4 uint8 [O/2, I], scale [O, 1]
    int64 with float32 bits, assist [O] f32.
    """

    weight: Tensor
    scale: Tensor
    assist: Tensor | None
    error: TensorError


def quantise(weight: Tensor, fmt: Format, name: str, importance: Tensor | None = None) -> Quantised:
    """weight [O, I] f32 -> int8 or int4; `name` is for the report.  importance [I] f32: mean square inputs.

    CheckpointError: int4 pairs channels, and O is odd.
    """
    largest = INT8_MAX if fmt == "int8" else INT4_MAX
    channels, width = weight.shape
    if fmt == "int4" and channels % 2:
        raise CheckpointError(f"{name}: int4 needs an even number of output channels, found {channels}")
    codes, scales = torch.empty(channels, width, dtype=torch.int8), torch.empty(channels)
    ratios = torch.empty(channels)
    squares = torch.zeros(
        3, width, dtype=torch.float64
    )  # of the error, the error without clipping, the values
    rows = max(1, _BLOCK // width)
    for begin in range(0, channels, rows):
        part = slice(begin, begin + rows)
        values = weight[part]
        amax = values.abs().amax(-1)
        amax = amax.where(amax > 0, 1.0)  # a channel of zeros: any scale does
        scales[part] = best_scales(values, amax, largest, importance)
        ratios[part] = scales[part] * largest / amax
        codes[part] = encode_integer(values, scales[part], largest)
        plain = encode_integer(values, amax / largest, largest)
        squares[0] += _residual(values, codes[part], scales[part])
        squares[1] += _residual(values, plain, amax / largest)
        squares[2] += values.square().sum(0)
    error, unclipped = _shares(squares)
    weighted, weighted_unclipped = (None, None) if importance is None else _shares(squares * importance)
    found = TensorError(name, fmt, error, unclipped, weighted, weighted_unclipped, float(ratios.mean()))
    if fmt == "int8":
        return Quantised(codes, scales.unsqueeze(-1), None, found)
    return Quantised(pack_int4(codes), scale_bits(scales).unsqueeze(-1), int4_assist(codes, scales), found)


def best_scales(weight: Tensor, amax: Tensor, largest: int, importance: Tensor | None) -> Tensor:
    """The scale with the smallest error, for each channel: a clip ratio · amax / largest, or a power of two.

    weight [O, I] f32, amax [O] its largest magnitudes, importance [I] f32 or None; returns [O] f32.
    """
    values, mass = _magnitudes(weight, importance)
    candidates = [ratio * amax / largest for ratio in CLIP_RATIOS]
    candidates.append(power_of_two_scale(amax, largest))
    best, least = candidates[0], torch.full_like(amax, torch.inf)
    for scale in candidates:
        step = scale.unsqueeze(-1)
        decoded = (values / step).round_().clamp_(max=largest).mul_(step)
        error = decoded.sub_(values).square_().mul_(mass).sum(-1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def _magnitudes(weight: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor]:
    """Magnitudes [O or 1, U] and what each weighs in the error of a channel, [O or 1, U].

    A matrix that was FP4 or FP8 has few different magnitudes, so many columns are one term of the sum: the
    search then takes a fraction of the time.
    """
    mass = torch.ones(weight.shape[1]) if importance is None else importance
    values = weight.abs()
    narrow = values.to(torch.bfloat16)
    if torch.equal(narrow.to(torch.float32), values):
        bits = narrow.view(torch.int16).to(torch.int64)
        present = torch.bincount(bits.flatten(), minlength=_BF16_MAGNITUDES) > 0
        different = present.nonzero().squeeze(-1)
        if 2 * len(different) <= weight.shape[1]:
            rank = (present.cumsum(0) - 1)[bits]
            terms = torch.zeros(len(weight), len(different)).scatter_add_(1, rank, mass.expand_as(values))
            return different.to(torch.int16).view(torch.bfloat16).to(torch.float32).unsqueeze(0), terms
    return values, mass.unsqueeze(0)


def relative_error(values: Tensor, stored: Tensor) -> float:
    """|values - stored| / |values|, Frobenius norms; 0 for a matrix of zeros."""
    whole = float(values.norm())
    return float((values - stored).norm()) / whole if whole else 0.0


def _residual(values: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Column sums of the squared error.  [O, I] -> [I]."""
    return (codes * scale.unsqueeze(-1)).sub_(values).square_().sum(0)


def _shares(squares: Tensor) -> tuple[float, float]:
    """Square roots of the first and second row over the third.  [3, I] f64."""
    first, second, whole = squares.sum(-1).tolist()
    return (math.sqrt(first / whole), math.sqrt(second / whole)) if whole else (0.0, 0.0)
