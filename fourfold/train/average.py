"""The moving average of the weights (EMA): steadier than the last step's, at no cost in steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """average = decay average + (1 - decay) weight after each step, in float32."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        """decay: 0 keeps nothing, and `applied` then changes nothing."""
        self.parameters = dict(parameters) if decay > 0 else {}
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        if self.values:
            torch._foreach_lerp_(list(self.values.values()), list(self.parameters.values()), 1.0 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Until the end the parameters hold the average."""
        held = {name: p.data for name, p in self.parameters.items()}
        try:
            for name, value in self.values.items():
                self.parameters[name].data = value
            yield
        finally:
            for name, value in held.items():
                self.parameters[name].data = value

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep, by name."""
        return {f"average.{name}": value for name, value in self.values.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave.  KeyError names a tensor that is missing."""
        for name, value in self.values.items():
            value.copy_(state[f"average.{name}"])
