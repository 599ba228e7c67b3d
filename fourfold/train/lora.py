"""[lora]: a low-rank adapter learns, on top of a checkpoint whose weights stay packed and as they are.

No dropout: an adapter is small against its data or trained for few epochs, and a step stays a function of its
number alone, which is what resuming to the bit rests on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.errors import TrainError
from fourfold.kernels.reference import swiglu
from fourfold.loading import load
from fourfold.model.adapters import AdaptedOperations, Adapter, LowRank
from fourfold.model.numerics import Numerics
from fourfold.plan import Demand, LoraMemory, lora_memory
from fourfold.tiers.memory import free_ram, written
from fourfold.tokenizer import Tokenizer
from fourfold.train.anticipation import Anticipation
from fourfold.train.config import TrainConfig
from fourfold.train.data import Batch
from fourfold.train.frozen import FrozenProducts
from fourfold.train.fused import Fused
from fourfold.train.indexer import IndexerLoss
from fourfold.train.losses import head_cross_entropy
from fourfold.train.objective import Common, check_vocabulary
from fourfold.train.recompute import recompute_blocks
from fourfold.weights.adapter import Place, StoredAdapter, base_fingerprint, targets, write_adapter
from fourfold.weights.hub import resolve


class LoraWeights(nn.Module):
    """A and B of every target, in float32: <module>.lora_A.weight, <module>.lora_B.weight, experts stacked.

    base: fingerprint of what they belong to, as bytes.
    """

    base: Tensor

    def __init__(self, places: Mapping[str, Place], rank: int, seed: int, base: str) -> None:
        super().__init__()
        self.places = dict(places)
        self.register_buffer("base", torch.tensor(list(base.encode()), dtype=torch.uint8))
        draw = torch.Generator().manual_seed(seed)
        for module, place in places.items():
            lead = () if place.experts is None else (place.experts,)
            # Rows of A of about unit length in each direction that inputs have, as PEFT begins.
            a = torch.empty(*lead, rank, place.width).uniform_(-1, 1, generator=draw) * place.width**-0.5
            self._add(f"{module}.lora_A", a)
            self._add(f"{module}.lora_B", torch.zeros(*lead, place.out, rank))

    def matrices(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """A and B by module."""
        return {
            module: (
                self.get_parameter(f"{module}.lora_A.weight"),
                self.get_parameter(f"{module}.lora_B.weight"),
            )
            for module in self.places
        }

    def _add(self, path: str, weight: Tensor) -> None:
        module: nn.Module = self
        for part in path.split("."):
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter("weight", nn.Parameter(weight))


class LoraObjective(Common):
    """Next-token loss of a frozen V4 model with an adapter.

    ConfigError, CheckpointError: the base or a target is not what is needed.  TrainError: the base does not
    fit into memory.
    """

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer, device: torch.device) -> None:
        self.lora = config.lora
        self.folder = resolve(self.lora.base)
        self.model_config = ModelConfig.from_file(self.folder)
        check_vocabulary(tokenizer, self.model_config, self.lora.base)
        places = targets(self.model_config, self.lora.targets)
        self.memory = memory_of(config, self.folder, self.model_config)
        base = base_fingerprint(self.folder)
        weights = LoraWeights(places, self.lora.rank, config.model.seed, base).to(device)
        super().__init__(config, weights)
        self.weights = weights
        self.base = base
        self.model = load(self.folder, device).requires_grad_(False)
        if self.model.tiers is not None:
            self.model.tiers.close()
            raise TrainError(
                f"{self.lora.base} does not fit into memory as it is stored; an adapter is trained where it "
                f"does: {self.memory}"
            )
        self.model.numerics = Numerics("training", self.dtype)
        self.operations: dict[str, Any] = Fused().operations | FrozenProducts(device, self.dtype).operations
        if config.run.recompute:
            recompute_blocks(self.model, IndexerLoss(self.model), lambda: self.operations)
        self.anticipation = Anticipation({}, config.stability)
        # What a parameter is does not change in training, its values do.
        scale = self.lora.alpha / self.lora.rank
        low = {f"{module}.weight": LowRank(a, b, scale) for module, (a, b) in weights.matrices().items()}
        self._adapted = AdaptedOperations([(None, Adapter(low, "").on(self.model))], gated=swiglu)

    def describe(self) -> str:
        """With the memory that it takes."""
        count = sum(parameter.numel() for parameter in self.module.parameters())
        return (
            f"adapter of rank {self.lora.rank} on {len(self.weights.places)} matrices of {self.lora.base}, "
            f"{count / 1e6:.1f}M parameters; {self.memory}"
        )

    def loss(self, batch: Batch, share: float, step: int) -> tuple[Tensor, dict[str, float]]:
        """The next-token loss, alone."""
        with kernels.replaced(batch.ids.device.type, self.operations):
            hidden, _, _ = self.model.hidden(batch.ids, batch.segments, operations=self._adapted)
            total = head_cross_entropy(hidden, self.model.head.weight, batch.targets, self.dtype)
        return total, {"loss": total.item()}

    def evaluate(self, batch: Batch) -> float:
        return self.loss(batch, 0.0, 0)[1]["loss"]

    def after_step(self) -> dict[str, float]:
        return {}

    def load_masters(self, tensors: Mapping[str, Tensor], source: Path) -> None:
        held = tensors.get("base")
        if held is None or not torch.equal(held, self.weights.base.cpu()):
            raise TrainError(
                f"{source} holds no adapter of {self.lora.base} as it is now; change run.dir or lora.base"
            )
        super().load_masters(tensors, source)

    def export(self, target: Path, tokenizer: Path) -> Path | None:
        """An adapter folder."""
        adapter = StoredAdapter(
            self.lora.rank,
            self.lora.alpha,
            {module: (a.data, b.data) for module, (a, b) in self.weights.matrices().items()},
        )
        return write_adapter(target, adapter, self.base, self.lora.base)


def memory_of(config: TrainConfig, folder: Path, model_config: ModelConfig) -> LoraMemory:
    """What a run takes.  TrainError: more than there is, even without activations."""
    data, run = config.data, config.run
    found = lora_memory(
        Demand.of(model_config, folder),
        config.lora.targets,
        rank=config.lora.rank,
        rows=data.batch_size // data.accumulate,
        length=data.sequence_length,
        recompute=run.recompute,
        half=run.dtype == "bfloat16",
        copies=2 + (2 if config.optimizer.matrices == "adamw" else 1) + (run.ema > 0),
    )
    free = free_ram() if run.device == "cpu" else None
    if free is not None and found.base + found.adapter > free:
        raise TrainError(f"{found}, and {written(free)} are free; lower lora.rank or name fewer lora.targets")
    return found
