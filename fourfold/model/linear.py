"""Weights as the checkpoint stores them: a matrix, or one per routed expert."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from fourfold import kernels
from fourfold.kernels.composed import Stored
from fourfold.kernels.formats import Rounding
from fourfold.model.numerics import Numerics

INIT_STD = 0.02
T = TypeVar("T")


class Noted(nn.Module):
    """A module that notices when one of its parameters becomes another tensor."""

    changes: ClassVar[int] = 0
    """How often that happened, in all such modules of the process."""

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        self._changed()

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Noted:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._changed()
        return self

    def _changed(self) -> None:
        Noted.changes += 1
        self._note(self._parameters)

    def _note(self, own: Mapping[str, Any]) -> None:
        """Keep what is wanted of them as plain attributes: nn.Module's own lookup costs half a microsecond a
        parameter, layer and token."""


class Kept(Generic[T]):
    """What `make` makes of parameters, made once: until one of any `Noted` module becomes another tensor."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._at = -1
        self._value: T

    def __call__(self) -> T:
        if self._at != Noted.changes:
            at = Noted.changes  # before: another thread may exchange a parameter meanwhile
            self._value = self._make()
            self._at = at
        return self._value


class StoredWeight(Noted):
    """A weight in any stored format, with its scale if it is packed."""

    scale: Tensor | None
    stored: Stored
    """The weight and its scale, as operations of several steps take them."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) * INIT_STD)
        self.register_parameter("scale", None)

    def _note(self, own: Mapping[str, Any]) -> None:
        self.stored = own["weight"], own.get("scale")


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
        return kernels.linear(x, *self.stored, self.rounding)


class GroupedLinear(StoredWeight):
    """One [O, I] matrix per group, stored as [G·O, I].  V4 report 2.3.1, the grouped output projection.

    Its input is not rounded to FP8 in deployed numerics: the published model dequantises this weight to bf16.
    """

    def __init__(self, in_features: int, out_features: int, groups: int, numerics: Numerics) -> None:
        super().__init__(groups * out_features, in_features)
        self.groups = groups
        self.rounding = numerics.rounding


class RMSNorm(Noted):
    """x / rms(x) · weight, in float32."""

    gain: Tensor
    """The weight, for operations that norm among other things."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def _note(self, own: Mapping[str, Any]) -> None:
        self.__dict__["gain"] = own["weight"]  # past nn.Module, which would make a second parameter of it

    def forward(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x, self.gain, self.eps)
