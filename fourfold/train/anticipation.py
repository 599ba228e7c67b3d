"""Anticipatory Routing: after a spike of the loss, experts are chosen by the weights of some steps ago.

A spike feeds on itself where the routers learn from outliers that their own choice made; taking the choice
from older weights cuts that loop, while everything else, the routers' scores included, goes on learning, as
in the published training. A step that spikes is not taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fourfold.kernels import reference
from fourfold.train.config import StabilitySection

RECENT = 64
"""Losses that tell what is usual."""
FEWEST = 16
"""Losses without which nothing is called unusual."""


class Anticipation:
    """Watches the loss, keeps copies of the weights, and makes the routers follow them for a while.

    The copy that chooses is between `lag` and 2 `lag` steps old.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], section: StabilitySection) -> None:
        self.section = section
        self.parameters = dict(parameters) if section.spike > 0 else {}
        self.recent: list[float] = []
        self.left = 0
        self.older = self._copy()
        self.newer = self._copy()

    def _copy(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    @property
    def active(self) -> bool:
        """Whether older weights choose in this step."""
        return self.left > 0

    def spiked(self, loss: float) -> bool:
        """Whether this loss is one; if so, older weights choose from the next step on."""
        if not self.parameters:
            return False
        recent = torch.tensor(self.recent, dtype=torch.float64)
        usual = len(recent) < FEWEST or loss <= recent.mean() + self.section.spike * recent.std()
        if usual:
            self.recent = [*self.recent, loss][-RECENT:]
        else:
            self.left = self.section.hold + 1  # of which the step that spiked takes one
        return not usual

    def after_step(self, step: int) -> None:
        """step: how many are done."""
        self.left = max(self.left - 1, 0)
        if self.parameters and step % self.section.lag == 0:
            self.older, self.newer = self.newer, self._copy()

    @contextmanager
    def older_weights(self) -> Iterator[None]:
        """Until the end the parameters are the older ones, without gradients."""
        held = {name: p.data for name, p in self.parameters.items()}
        try:
            for name, value in self.older.items():
                self.parameters[name].data = value
            with torch.no_grad():
                yield
        finally:
            for name, value in held.items():
                self.parameters[name].data = value

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep, by name."""
        if not self.parameters:
            return {}
        copies = {f"older.{n}": v for n, v in self.older.items()}
        copies |= {f"newer.{n}": v for n, v in self.newer.items()}
        recent = torch.tensor(self.recent, dtype=torch.float64)
        return copies | {"anticipation.recent": recent, "anticipation.left": torch.tensor(self.left)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave.  KeyError names a tensor that is missing."""
        if not self.parameters:
            return
        for name in self.parameters:
            self.older[name].copy_(state[f"older.{name}"])
            self.newer[name].copy_(state[f"newer.{name}"])
        self.recent = state["anticipation.recent"].tolist()
        self.left = int(state["anticipation.left"])


def note(chosen: dict[int, Tensor]) -> dict[str, Callable[..., Any]]:
    """Operations with which routers choose as ever and leave their choice in `chosen`, by the identity of the
    gate's weight."""

    def route_topk(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        result = reference.route_topk(x, weight, *rest)
        chosen[id(weight)] = result[0]
        return result

    return {"route_topk": route_topk}


def follow(chosen: Mapping[int, Tensor]) -> dict[str, Callable[..., Any]]:
    """Operations with which routers take the choices that `note` left, and weigh them by their own scores."""

    def route_topk(
        x: Tensor, weight: Tensor, bias: Tensor, k: int, scaling: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return reference.route_hash(x, weight, chosen[id(weight)], scaling)

    return {"route_topk": route_topk}
