"""Muon for matrices, AdamW for the rest: the optimiser of the published models (V4 report 2.4).

Both keep their state in float32.  Matrices of equal shape, and every expert of a stacked parameter
[E, O, I], are orthogonalised together as one batched product: at small sizes the launches cost more
than the arithmetic.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fourfold.train.config import OptimizerSection

FAST = (3.4445, -4.7750, 2.0315)  # drives small singular values up quickly, ends within about 0.3 of 1
SETTLE = (2.0, -1.5, 0.5)  # brings what is near 1 to 1
MATRIX_EXCEPTIONS = ("embed.weight", "head.weight", "ape")


def orthogonalise(
    matrices: Tensor, steps: tuple[int, ...] = (8, 2), dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """The nearest (semi-)orthogonal matrices U V^T of U S V^T, by Newton-Schulz.

    matrices: [..., O, I] floating;  returns the same shape in `dtype`.
    X <- aX + b(XX^T)X + c(XX^T)^2 X after division by the Frobenius norm; steps = (fast, settling).
    V4 report 2.4, algorithm 1: eight steps with (3.4445, -4.7750, 2.0315), two with (2, -1.5, 0.5).
    """
    wide = matrices.size(-2) <= matrices.size(-1)
    norm = matrices.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-20)
    x = (matrices / norm).to(dtype)
    x = x if wide else x.mT
    x = x.reshape(-1, x.size(-2), x.size(-1)).contiguous()
    for (a, b, c), count in zip((FAST, SETTLE), steps, strict=True):
        for _ in range(count):
            gram = torch.bmm(x, x.mT)
            poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.baddbmm(x, poly, x, beta=a)
    x = x.reshape(*matrices.shape[:-2], x.size(-2), x.size(-1))
    return x if wide else x.mT


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes it: matrices, stacked experts included, but not embedding, head and ape."""
    return parameter.ndim >= 2 and not name.endswith(MATRIX_EXCEPTIONS)


def by_muon(name: str, parameter: Tensor, settings: OptimizerSection) -> bool:
    """Whether Muon takes it in a run with these settings."""
    return settings.matrices == "muon" and is_matrix(name, parameter)


class Muon:
    """W = W (1 - lr decay) - lr O, O = orthogonalise(mu M + G) sqrt(max(rows, cols)) gamma, M = mu M + G."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: OptimizerSection) -> None:
        self.parameters = dict(parameters)
        self.settings = settings
        self.momentum = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.groups: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name, parameter in self.parameters.items():
            self.groups[(parameter.size(-2), parameter.size(-1))].append(name)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update of every parameter that has a gradient."""
        mu = self.settings.momentum
        for (rows, cols), names in self.groups.items():
            active = [name for name in names if self.parameters[name].grad is not None]
            if not active:
                continue
            stack = []
            for name in active:
                gradient = self.parameters[name].grad
                assert gradient is not None
                momentum = self.momentum[name].mul_(mu).add_(gradient)
                stack.append(gradient.add(momentum, alpha=mu).reshape(-1, rows, cols))
            update = orthogonalise(torch.cat(stack), self.settings.steps)
            scale = max(rows, cols) ** 0.5 * self.settings.gamma
            for name, part in zip(active, update.split([s.size(0) for s in stack]), strict=True):
                weight = self.parameters[name]
                weight.mul_(1.0 - lr * self.settings.weight_decay)
                weight.add_(part.reshape(weight.shape), alpha=-lr * scale)

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep, by name."""
        return {f"muon.{name}": value for name, value in self.momentum.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for name, value in self.momentum.items():
            value.copy_(state[f"muon.{name}"])


class AdamW:
    """Adam with decoupled weight decay, as multi-tensor operations; vectors and scalars are not decayed."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: OptimizerSection) -> None:
        self.parameters = dict(parameters)
        self.settings = settings
        self.first = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.count = 0

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update of every parameter that has a gradient."""
        self.count += 1
        beta1, beta2 = self.settings.beta1, self.settings.beta2
        fix1, fix2 = 1.0 - beta1**self.count, 1.0 - beta2**self.count
        names = [name for name, p in self.parameters.items() if p.grad is not None]
        if not names:
            return
        weights: list[Tensor] = [self.parameters[name] for name in names]
        gradients = [w.grad for w in weights if w.grad is not None]
        first, second = [self.first[n] for n in names], [self.second[n] for n in names]
        torch._foreach_lerp_(first, gradients, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1.0 - beta2)
        bottom = torch._foreach_sqrt(second)
        torch._foreach_div_(bottom, fix2**0.5)
        torch._foreach_add_(bottom, self.settings.eps)
        decayed = [w for w in weights if w.ndim >= 2]
        if decayed:
            torch._foreach_mul_(decayed, 1.0 - lr * self.settings.weight_decay)
        torch._foreach_addcdiv_(weights, first, bottom, -lr / fix1)

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep, by name."""
        moments = {f"adamw.first.{n}": v for n, v in self.first.items()}
        moments |= {f"adamw.second.{n}": v for n, v in self.second.items()}
        return moments | {"adamw.count": torch.tensor(self.count)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for name in self.parameters:
            self.first[name].copy_(state[f"adamw.first.{name}"])
            self.second[name].copy_(state[f"adamw.second.{name}"])
        self.count = int(state["adamw.count"])


class Optimizer:
    """Muon and AdamW side by side, each parameter in exactly one of them."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], settings: OptimizerSection) -> None:
        trained = {name: p for name, p in named if p.requires_grad}
        muon = {n: p for n, p in trained.items() if by_muon(n, p, settings)}
        self.settings = settings
        self.muon = Muon(muon, settings)
        self.adamw = AdamW({n: p for n, p in trained.items() if n not in muon}, settings)
        self.parameters = list(trained.values())

    def step(self, factor: float) -> float:
        """Clip, update at `factor` times the peak rates, drop the gradients.  Returns their norm."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = self.norm()
        clip = self.settings.clip
        if gradients and clip > 0 and norm > clip:
            torch._foreach_mul_(gradients, float(clip / norm))
        self.muon.step(factor * self.settings.lr)
        self.adamw.step(factor * self.settings.adamw_lr)
        self.drop()
        return float(norm)

    def norm(self) -> Tensor:
        """Of the whole gradient."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return torch.stack(torch._foreach_norm(gradients)).norm()

    def drop(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep, by name."""
        return self.muon.state() | self.adamw.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave.  KeyError names a tensor that is missing."""
        self.muon.load(state)
        self.adamw.load(state)
