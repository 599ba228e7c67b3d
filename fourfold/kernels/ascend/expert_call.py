"""A call of `kernels.experts` in one piece, as the forms of that operation read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from fourfold.kernels.formats import Rounding, channel_scale

_T = TypeVar("_T")


@dataclass(frozen=True)
class ExpertCall:
    """The contract's arguments; stacks, scales: of w1, w3 and w2."""

    x: Tensor
    indices: Tensor
    weights: Tensor
    stacks: tuple[Tensor, Tensor, Tensor]
    scales: tuple[Tensor | None, Tensor | None, Tensor | None]
    limit: float
    rounding: Rounding
    places: Tensor | None
    out: Tensor | None

    @property
    def count(self) -> int:
        """Experts in the stacks."""
        return self.stacks[0].shape[0]

    @property
    def stored(self) -> list[tuple[Tensor, Tensor | None]]:
        """Each stack with its scales."""
        return list(zip(self.stacks, self.scales, strict=True))

    @property
    def channels(self) -> list[Tensor]:
        """The scales of int8 and int4 stacks, [S, O] f32 each."""
        return [channel_scale(scale) for scale in self.scales if scale is not None]

    def matrices(self, row: int) -> list[tuple[Tensor, Tensor | None]]:
        """Those of one expert."""
        return [(weight[row], None if scale is None else scale[row]) for weight, scale in self.stored]

    def added(self, y: Tensor) -> Tensor:
        """y, or what it makes of `out`."""
        return y if self.out is None else self.out.add_(y)


def of_call(answer: Callable[[ExpertCall], _T]) -> Callable[..., _T]:
    """`answer`, with the arguments of `kernels.experts`."""

    def experts(
        x: Tensor,
        indices: Tensor,
        weights: Tensor,
        w1: Tensor,
        s1: Tensor | None,
        w3: Tensor,
        s3: Tensor | None,
        w2: Tensor,
        s2: Tensor | None,
        limit: float,
        rounding: Rounding = Rounding.NONE,
        places: Tensor | None = None,
        out: Tensor | None = None,
    ) -> _T:
        stacks, scales = (w1, w3, w2), (s1, s3, s2)
        return answer(ExpertCall(x, indices, weights, stacks, scales, limit, rounding, places, out))

    return experts
