"""Rotary angles: plain for sliding-window layers, YaRN-interpolated for compressed ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fourfold.config import ModelConfig, YarnConfig


def inverse_frequencies(config: ModelConfig, *, compressed: bool) -> Tensor:
    """[R/2] float32.  Layers of ratio 0 use rope_theta alone; compressed layers compress_rope_theta with
    YaRN."""
    width = config.qk_rope_head_dim
    theta = config.compress_rope_theta if compressed else config.rope_theta
    frequencies = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    if compressed and config.yarn is not None:
        keep = _keep_ramp(width, theta, config.yarn)
        frequencies = frequencies / config.yarn.factor * (1 - keep) + frequencies * keep
    return frequencies


def _keep_ramp(width: int, theta: float, yarn: YarnConfig) -> Tensor:
    """1 where a pair turns fast enough to be kept, 0 where it is interpolated, a ramp between.  [R/2]."""

    def pair_of(turns: float) -> float:
        length = yarn.original_max_position_embeddings
        return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_of(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_of(yarn.beta_slow)), width - 1)
    span = high - low if high > low else 0.001
    ramp = (torch.arange(width // 2, dtype=torch.float32) - low) / span
    return 1 - ramp.clamp(0, 1)


def cos_sin(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of position · frequency, [..., R/2] float32; YaRN's mscale is not applied (as
    published)."""
    # The float32 product is what the model was trained with, also where it is coarse (beyond 10^5).
    angles = positions.to(torch.float32).unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()
