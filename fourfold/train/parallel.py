"""Several processes that train one model, each on its own rows of a step's batch; started by torchrun.

The ranks are `parallel.replicas` times `shards`. The shards of a replica divide the routed experts among
them (expert_parallel.py). Everything else is on every rank, but each of its matrices has one rank that owns
it and updates it (divided.py): a divided matrix could not be orthogonalised where it lies, and experts are
nearly all of a V4 model.

Sent in a step, by each rank: every dense gradient to its owner, every updated dense weight from there; for
each MoE layer the chosen rows of K · D numbers a token to their experts and back, twice (forward and
backward); for experts, with replicas, a sum of their gradients; counts and norms, a few hundred numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fourfold.errors import ConfigError
from fourfold.model.moe import Experts

Group = dist.ProcessGroup
EXPERTS = ".ffn.experts.w"
"""What the names of divided parameters have in common."""


class Ranks:
    """This process among the others.

    shard, shards: of the experts.  replicas: how often each shard exists.
    """

    def __init__(self, rank: int = 0, size: int = 1, replicas: int = 1) -> None:
        """ConfigError: the ranks cannot be divided so."""
        if size % replicas:
            raise ConfigError(
                f"parallel.replicas is {replicas}, which does not divide the {size} processes; change it or "
                "torchrun's --nproc-per-node"
            )
        self.rank, self.size, self.replicas = rank, size, replicas
        self.shards = size // replicas
        self.shard = rank % self.shards
        self.replica_group: Group | None = None
        """The ranks of one replica, which have all experts together."""
        self.shard_group: Group | None = None
        """The ranks that have the same experts."""
        if size > 1:
            self._group()

    def _group(self) -> None:
        everyone = torch.arange(self.size).view(self.replicas, self.shards)
        # Every rank makes every group, as torch.distributed wants.
        by_replica = [dist.new_group(row.tolist()) for row in everyone]
        by_shard = [dist.new_group(column.tolist()) for column in everyone.T]
        self.replica_group = by_replica[self.rank // self.shards]
        self.shard_group = by_shard[self.shard]

    @property
    def first(self) -> bool:
        """Whether this one writes and speaks for all."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def totals(self, values: Mapping[str, float], names: tuple[str, ...]) -> dict[str, float]:
        """Sums by name, of those of `names` that some rank has."""
        if self.size == 1:
            return dict(values)
        table = torch.tensor([[values.get(n, 0.0), n in values] for n in names], dtype=torch.float64)
        summed = self.total(table).tolist()
        return {name: value for name, (value, count) in zip(names, summed, strict=True) if count}

    def agreed(self, value: float) -> float:
        """The first rank's."""
        if self.size == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(told, src=0)
        return told.item()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first rank alone, then all others: it makes files that they read."""
        if not self.first:
            dist.barrier()
        yield
        if self.first and self.size > 1:
            dist.barrier()

    def own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's part of whole tensors, by parameter name behind any prefix."""
        return {name: self._rows(value) if self._divided(name) else value for name, value in tensors.items()}

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `own` took apart, joined again on every rank."""
        return {
            name: self._joined(value) if self._divided(name) else value for name, value in tensors.items()
        }

    def _divided(self, name: str) -> bool:
        return self.shards > 1 and EXPERTS in name

    def _rows(self, tensor: Tensor) -> Tensor:
        return tensor.chunk(self.shards)[self.shard].clone()

    def _joined(self, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(self.shards)]
        dist.all_gather(parts, tensor.contiguous(), group=self.replica_group)
        return torch.cat(parts)

    def divide(self, module: nn.Module) -> None:
        """Keep this rank's experts of each MoE layer alone.  ConfigError: they cannot be divided evenly."""
        for experts in (m for m in module.modules() if isinstance(m, Experts) and self.shards > 1):
            for matrix in (experts.w1, experts.w3, experts.w2):
                if len(matrix.weight) % self.shards:
                    raise ConfigError(
                        f"the model has {len(matrix.weight)} experts a layer, which {self.shards} ranks "
                        "cannot share evenly; start another number of processes or set parallel.replicas"
                    )
                matrix.weight = nn.Parameter(self._rows(matrix.weight.data))


_current = Ranks()


def begin(replicas: int, device: torch.device) -> Ranks:
    """Join the processes that torchrun started, or be alone.  ConfigError as `Ranks`."""
    global _current
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("gloo" if device.type == "cpu" else None)
    _current = Ranks(int(os.environ.get("RANK", "0")), size, replicas)
    return _current


def leave() -> None:
    """Part from the others."""
    global _current
    _current = Ranks()
    if dist.is_initialized():
        dist.destroy_process_group()


def speaks() -> bool:
    """Whether this process speaks for all that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def ranks() -> Ranks:
    """Those of the run under way: there is one world a process."""
    return _current


def own_device(device: str) -> torch.device:
    """A rank's own one of several, where the configuration names only their kind."""
    local = os.environ.get("LOCAL_RANK")
    chosen = torch.device(device)
    if chosen.type == "cpu" or ":" in device or local is None:
        return chosen
    return torch.device(chosen.type, int(local))
