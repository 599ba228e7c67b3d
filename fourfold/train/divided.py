"""The optimiser of several ranks: each updates the matrices that it owns, and the experts that it has.

Muon needs whole matrices, so the ranks divide them and not their rows, as the published training does: each
gradient is summed at its matrix's owner, who has the state, orthogonalises, and sends the weight to the
others. That is as much to send as for sharded rows, which would have to be gathered for Muon besides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fourfold.train.config import OptimizerSection
from fourfold.train.optim import Optimizer, by_muon
from fourfold.train.parallel import EXPERTS, Ranks


def owners(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """Parameter -> rank: the largest first, each to whom has least so far."""
    load = [0] * ranks
    chosen = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        chosen[name] = min(range(ranks), key=load.__getitem__)
        load[chosen[name]] += sizes[name]
    return chosen


class DividedOptimizer(Optimizer):
    """`Optimizer` over all ranks, whose gradients are parts of one sum."""

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], settings: OptimizerSection, ranks: Ranks
    ) -> None:
        self.ranks = ranks
        self.named = {name: p for name, p in named if p.requires_grad}
        self.dense = [name for name in self.named if EXPERTS not in name]
        self.owner = owners({name: self.named[name].numel() for name in self.dense}, ranks.size)
        mine = {n: p for n, p in self.named.items() if self.owner.get(n, ranks.rank) == ranks.rank}
        super().__init__(mine.items(), settings)

    def step(self, factor: float) -> float:
        """As `Optimizer.step`; the same on every rank."""
        active = self._active()
        self._sum_gradients(active)
        norm = super().step(factor)
        for rank in range(self.ranks.size):
            self._send([n for n in self.dense if n in active and self.owner[n] == rank], rank)
        return norm

    def _active(self) -> set[str]:
        """Parameters that have a gradient on some rank; where they have none, it is zero."""
        found = torch.tensor([p.grad is not None for p in self.named.values()], dtype=torch.int64)
        self.ranks.total(found)
        active = {name for name, count in zip(self.named, found.tolist(), strict=True) if count}
        for name in active:
            parameter = self.named[name]
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return active

    def _sum_gradients(self, active: set[str]) -> None:
        for rank in range(self.ranks.size):
            parts = [self.named[n] for n in self.dense if n in active and self.owner[n] == rank]
            if parts:
                flat = torch.cat([p.grad.flatten() for p in parts if p.grad is not None])
                dist.reduce(flat, dst=rank)
                for parameter, part in zip(parts, flat.split([p.numel() for p in parts]), strict=True):
                    parameter.grad = part.view_as(parameter) if rank == self.ranks.rank else None
        if self.ranks.replicas > 1:
            for name in (n for n in self.named if n in active and n not in self.owner):
                gradient = self.named[name].grad
                assert gradient is not None
                dist.all_reduce(gradient, group=self.ranks.shard_group)

    def norm(self) -> Tensor:
        """Of the whole model's gradient: each expert counts once, however many ranks have it."""
        total = torch.zeros(())
        for name, parameter in self.named.items():
            if parameter.grad is not None:
                times = 1 if name in self.owner else self.ranks.replicas
                total += parameter.grad.float().square().sum().cpu() / times
        return self.ranks.total(total).sqrt()

    @torch.no_grad()
    def _send(self, names: list[str], rank: int) -> None:
        if not names:
            return
        parts = [self.named[name] for name in names]
        flat = torch.cat([p.flatten() for p in parts])
        dist.broadcast(flat, src=rank)
        for parameter, part in zip(parts, flat.split([p.numel() for p in parts]), strict=True):
            parameter.copy_(part.view_as(parameter))

    def drop(self) -> None:
        """Forget the gradients."""
        for parameter in self.named.values():
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep, by name: of all dense parameters, and of the experts that this rank has."""
        own = super().state()
        whole = {"adamw.count": own["adamw.count"]}
        for name, parameter in self.named.items():
            muon = by_muon(name, parameter, self.settings)
            for key in (f"muon.{name}",) if muon else (f"adamw.first.{name}", f"adamw.second.{name}"):
                whole[key] = own[key] if key in own else torch.empty_like(parameter.data)
                if name in self.owner:
                    dist.broadcast(whole[key], src=self.owner[name])
        return whole
