"""What is trained, behind one small door: a module, its loss on a batch, and what happens after a step.

The trainer knows nothing else, so another objective (distillation, say) is another class here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.errors import ConfigError, TrainError
from fourfold.model.numerics import Numerics
from fourfold.model.transformer import Transformer
from fourfold.tokenizer import Tokenizer
from fourfold.train.anticipation import Anticipation, follow, note
from fourfold.train.config import TrainConfig
from fourfold.train.data import Batch, Stream
from fourfold.train.dense import Dense
from fourfold.train.expert_parallel import divided_experts
from fourfold.train.finish import export
from fourfold.train.fused import Fused, every_visible
from fourfold.train.indexer import IndexerLoss
from fourfold.train.initialise import initialise
from fourfold.train.losses import head_cross_entropy, sequence_balance, update_bias
from fourfold.train.masters import read_masters
from fourfold.train.parallel import ranks
from fourfold.train.recompute import recompute_blocks
from fourfold.train.record import Progress
from fourfold.weights.names import checkpoint_spec, parameter_of

Function = Callable[..., Any]


class Objective(Protocol):
    """module: what the optimiser sees.  formats: parameter name -> "fp4", "fp8" or "bf16" of its export.

    anticipation: what watches for spikes of the loss.
    """

    module: nn.Module
    formats: Mapping[str, str]
    anticipation: Anticipation

    def describe(self) -> str:
        """One line for the start of a run."""
        ...

    def prepare(self, data: Stream, progress: Progress) -> None:
        """What is done once, before the first step."""
        ...

    def loss(self, batch: Batch, share: float, step: int) -> tuple[Tensor, dict[str, float]]:
        """The number to minimise, and columns for metrics.csv ("loss" is the next-token loss alone)."""
        ...

    def evaluate(self, batch: Batch) -> float:
        """Mean next-token loss in nats over the batch's targets."""
        ...

    def after_step(self) -> dict[str, float]:
        """What changes by rule and not by gradient.  Columns for metrics.csv."""
        ...

    def masters(self) -> dict[str, Tensor]:
        """All parameters in float32 (integers as they are), by name."""
        ...

    def load_masters(self, tensors: Mapping[str, Tensor], source: Path) -> None:
        """Take back what `masters` gave.  TrainError if `source` holds another model."""
        ...

    def export(self, target: Path, tokenizer: Path) -> Path | None:
        """Write what others can load, or None if there is nothing for them."""
        ...


def build_objective(config: TrainConfig, tokenizer: Tokenizer, device: torch.device) -> Objective:
    """The objective of [model], initialised.  ConfigError: the tokenizer has ids that the model lacks."""
    if config.lora.base:
        from fourfold.train.lora import LoraObjective  # which is one of these

        return LoraObjective(config, tokenizer, device)
    model_config = ModelConfig.from_file(config.model.config)
    check_vocabulary(tokenizer, model_config, config.model.config)
    torch.manual_seed(config.model.seed)
    if config.model.kind == "dense":
        return DenseObjective(config, model_config, device)
    if config.distil.teacher:
        from fourfold.train.distil import DistilObjective  # which is one of these

        return DistilObjective(config, model_config, tokenizer, device)
    if config.rollout.prompts:
        from fourfold.train.on_policy import RolloutObjective

        return RolloutObjective(config, model_config, tokenizer, device)
    return V4Objective(config, model_config, device)


def check_vocabulary(tokenizer: Tokenizer, model_config: ModelConfig, name: str) -> None:
    """ConfigError: the tokenizer has ids that the model called `name` lacks."""
    if tokenizer.vocab_size > model_config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} ids, {name} a vocab_size of "
            f"{model_config.vocab_size}; the vocabulary must hold every id"
        )


class Common:
    """Parameters in and out, the same for every module."""

    def __init__(self, config: TrainConfig, module: nn.Module) -> None:
        self.config = config
        self.module = module
        self.formats: Mapping[str, str] = {}
        self.dtype = getattr(torch, config.run.dtype)

    def prepare(self, data: Stream, progress: Progress) -> None:
        return

    def masters(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.module.state_dict().items()}

    def load_masters(self, tensors: Mapping[str, Tensor], source: Path) -> None:
        own = self.masters()
        if different := sorted(own.keys() ^ tensors.keys()):
            raise TrainError(f"{source} holds another model: it and the config differ in {different[0]}")
        for name, value in own.items():
            if value.shape != tensors[name].shape:
                found, needed = list(tensors[name].shape), list(value.shape)
                raise TrainError(f"{source}: {name} has shape {found}, the model needs {needed}")
            value.copy_(tensors[name])

    def _begin(self) -> None:
        """Weights to start from, and what watches them."""
        initialise(self.module, self.config.model.init_std)
        if folder := self.config.model.init_from:
            self.load_masters(read_masters(Path(folder)), Path(folder))
        ranks().divide(self.module)
        self.anticipation = Anticipation(dict(self.module.named_parameters()), self.config.stability)


class V4Objective(Common):
    """Next token, MTP and balance losses of a V4 model; biases of its routers follow the load."""

    def __init__(self, config: TrainConfig, model_config: ModelConfig, device: torch.device) -> None:
        model = Transformer(model_config).to(device)
        super().__init__(config, model)
        self.model = model
        self.model_config = model_config
        self.formats = export_formats(config, model_config)
        # Streams in the training dtype, as published; nothing else is rounded between operations.
        model.numerics = Numerics("training", self.dtype)
        fused = Fused(config.data.sequence_length if config.run.compile else None)
        self.operations = fused.operations
        self.indexers = IndexerLoss(model)
        fused.watch = self.indexers.seen
        # Batches of an evaluation vary in size, and compiling for each size costs more than it saves.
        self.evaluation_operations = Fused().operations
        if ranks().shards > 1:
            self.operations["experts"] = partial(divided_experts, gated=fused.gated)
            self.evaluation_operations["experts"] = divided_experts
        if config.run.recompute:
            recompute_blocks(model, self.indexers, lambda: self._in_use)
        self._begin()
        gates = [block.ffn.gate for block in (*model.layers, *model.mtp)]
        self.biases = [gate.bias for gate in gates if not gate.hashed]
        self._chosen: list[list[Tensor]] = []
        self._in_use: Mapping[str, Function] = self.operations

    def describe(self) -> str:
        total = sum(p.numel() for p in self.model.parameters())
        active = active_parameters(self.model_config)
        return f"V4 model, {total / 1e6:.1f}M parameters, {active / 1e6:.1f}M active a token without MTP"

    def loss(self, batch: Batch, share: float, step: int) -> tuple[Tensor, dict[str, float]]:
        weights = self.config.loss
        mtp_weight = weights.mtp if share < weights.mtp_final_from else weights.mtp_final
        guesses = mtp_weight > 0 and bool(self.model.mtp) and step % weights.mtp_every == 0
        if weights.indexer > 0 and step % weights.indexer_every == 0:
            self.indexers.start()
        self._in_use = self._operations(batch, share)
        with kernels.replaced(batch.ids.device.type, self._in_use):
            hidden, guess, routing = self.model.hidden(batch.ids, batch.segments, mtp=guesses)
        head = self.model.head.weight
        total, values = self._next_token(hidden, batch)
        if guess is not None:
            mtp = head_cross_entropy(guess, head, batch.targets2, self.dtype)
            values["mtp_loss"] = mtp.item()
            total = total + mtp_weight * weights.mtp_every * mtp
        chosen = self.indexers.take()
        if chosen is not None:
            values["indexer_loss"] = chosen.item()
            total = total + weights.indexer * weights.indexer_every * chosen
        if routing and weights.balance > 0:
            rows = batch.ids.size(0)
            balance = torch.stack([sequence_balance(r.scores, r.indices, rows) for r in routing]).mean()
            values["balance"] = balance.item()
            total = total + weights.balance * balance
        self._chosen.append([r.indices for r in routing])
        return total, values

    def _next_token(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The main loss from the head's input [B, T, D], and its columns."""
        total = head_cross_entropy(hidden, self.model.head.weight, batch.targets, self.dtype)
        return total, {"loss": total.item()}

    def _operations(self, batch: Batch, share: float) -> dict[str, Function]:
        """What runs this batch: dense attention at first, older weights' choice of experts after a spike."""
        used = dict(self.operations)
        if share < self.config.loss.dense_until:
            used["index_topk"] = every_visible
        if self.anticipation.active:
            chosen: dict[int, Tensor] = {}
            noting = kernels.replaced(batch.ids.device.type, used | note(chosen))
            with self.anticipation.older_weights(), noting:
                self.model.hidden(batch.ids, batch.segments, mtp=bool(self.model.mtp))
            used |= follow(chosen)
        return used

    def evaluate(self, batch: Batch) -> float:
        with kernels.replaced(batch.ids.device.type, self.evaluation_operations):
            hidden, _, _ = self.model.hidden(batch.ids, batch.segments)
        return head_cross_entropy(hidden, self.model.head.weight, batch.targets, self.dtype).item()

    def after_step(self) -> dict[str, float]:
        step = self.config.loss.bias_update
        experts = self.model_config.n_routed_experts
        layers = [torch.cat(parts).flatten() for parts in zip(*self._chosen, strict=True)]
        self._chosen = []
        if not layers:
            return {"max_load": 0.0}
        loads = ranks().total(torch.stack([torch.bincount(layer, minlength=experts) for layer in layers]))
        # The MTP block, which is last, does not run in every step.
        return {"max_load": max(update_bias(b.data, load, step) for b, load in zip(self.biases, loads))}  # noqa: B905

    def export(self, target: Path, tokenizer: Path) -> Path | None:
        masters = ranks().whole(self.masters())
        with ranks().in_turn():
            if ranks().first:
                export(masters, self.model_config, self.config.quantisation, target, tokenizer)
        return target


class DenseObjective(Common):
    """Next-token loss of the dense yardstick."""

    def __init__(self, config: TrainConfig, model_config: ModelConfig, device: torch.device) -> None:
        self.model = Dense(model_config, active_parameters(model_config)).to(device)
        super().__init__(config, self.model)
        self._begin()

    def describe(self) -> str:
        return f"dense yardstick, {sum(p.numel() for p in self.model.parameters()) / 1e6:.1f}M parameters"

    def loss(self, batch: Batch, share: float, step: int) -> tuple[Tensor, dict[str, float]]:
        hidden = self.model(batch.ids, batch.segments)
        loss = head_cross_entropy(hidden, self.model.head.weight, batch.targets, self.dtype)
        return loss, {"loss": loss.item()}

    def evaluate(self, batch: Batch) -> float:
        return self.loss(batch, 0.0, 0)[1]["loss"]

    def after_step(self) -> dict[str, float]:
        return {}

    def export(self, target: Path, tokenizer: Path) -> Path | None:
        return None


def export_formats(config: TrainConfig, model_config: ModelConfig) -> dict[str, str]:
    """Parameter name -> format of its export, for all that are not float32 or integers there."""
    chosen = {"expert": config.quantisation.experts, "linear": config.quantisation.linears, "bf16": "bf16"}
    spec = checkpoint_spec(model_config)
    return {parameter_of(name)[0]: chosen[s.kind] for name, s in spec.items() if s.kind in chosen}


def active_parameters(config: ModelConfig) -> int:
    """Parameters that one token uses, without MTP and without the hash table."""
    spec = {n: s for n, s in checkpoint_spec(config).items() if not n.startswith("mtp.") and s.kind != "int"}
    total = 0.0
    for item in spec.values():
        size = 1
        for length in item.shape:
            size *= length
        used = config.num_experts_per_tok / config.n_routed_experts if item.kind == "expert" else 1.0
        total += size * used
    return round(total)
