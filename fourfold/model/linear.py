"""Weights as the checkpoint stores them: a matrix, or one per routed expert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fourfold import kernels
from fourfold.kernels.composed import Stored
from fourfold.kernels.formats import Rounding
from fourfold.model.numerics import Numerics

INIT_STD = 0.02


class StoredWeight(nn.Module):
    """A weight in any stored format, with its scale if it is packed."""

    scale: Tensor | None

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) * INIT_STD)
        self.register_parameter("scale", None)

    @property
    def stored(self) -> Stored:
        """The weight and its scale, as operations of several steps take them."""
        # Past nn.Module's lookup, which costs half a microsecond a parameter, layer and token.
        own: Mapping[str, Any] = self._parameters
        return own["weight"], own["scale"]


class Linear(StoredWeight):
    """y = W·x.  weight [O, I] in any stored format; no bias anywhere in V4."""

    def __init__(self, in_features: int, out_features: int, numerics: Numerics) -> None:
        super().__init__(out_features, in_features)
        self.numerics = numerics

    @property
    def rounding(self) -> Rounding:
        """Of the input."""
        return self.numerics.input_of(*self.stored)

    def forward(self, x: Tensor) -> Tensor:
        return kernels.linear(x, self.weight, self.scale, self.rounding)


class GroupedLinear(StoredWeight):
    """One [O, I] matrix per group, stored as [G·O, I].  V4 report 2.3.1, the grouped output projection.

    Its input is not rounded to FP8 in deployed numerics: the published model dequantises this weight to bf16.
    """

    def __init__(self, in_features: int, out_features: int, groups: int, numerics: Numerics) -> None:
        super().__init__(groups * out_features, in_features)
        self.groups = groups
        self.rounding = numerics.rounding


class RMSNorm(nn.Module):
    """x / rms(x) · weight, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    @property
    def gain(self) -> Tensor:
        """The weight, for operations that norm among other things."""
        own: Mapping[str, Any] = self._parameters
        weight: Tensor = own["weight"]
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x, self.weight, self.eps)
