"""The training configuration: one strict TOML file, read into frozen dataclasses.

Every key has a default except the few without which a run makes no sense; a key that is not
documented here is refused by name, because a misspelt `wieght_decay` must not train a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fourfold.errors import ConfigError
from fourfold.protocol import PromptFormat
from fourfold.train.config_rollout import GrpoSection, OnPolicySection, RolloutSection, check_rollout
from fourfold.train.strict import build, read_toml
from fourfold.weights.adapter import LORA_TARGETS


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """[model]: what is trained.

    kind: "v4", the architecture this package is about, or "dense", a plain transformer as a yardstick.
    config: path of the config.json (for "dense": of the V4 model it is to be compared with); needed unless
        lora.base is given.
    init_from: a run's checkpoint folder or an exported checkpoint to start from; "" starts at random.
    seed: of the random initialisation.
    init_std: standard deviation of random matrices; residual outputs are scaled down by depth.
    """

    kind: str = "v4"
    config: str = ""
    init_from: str = ""
    seed: int = 0
    init_std: float = 0.02


@dataclass(frozen=True, kw_only=True)
class FileSection:
    """One [[data.files]] entry.

    path: .jsonl, .jsonl.xz or .parquet (objects with "text", with "prompt" and "response", or with
        "messages"), .txt (one sample a blank-line block), or hf:NAME, a dataset that `datasets` finds, by its
        name or as a folder.
    weight: how often an epoch sees each sample: 2 is twice, 0.5 is a different half each epoch.
    kinds: keep only records whose "kind" is one of these; empty keeps all.
    subset, split: of a dataset.
    """

    path: str
    weight: float = 1.0
    kinds: tuple[str, ...] = ()
    subset: str = ""
    split: str = "train"


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """[data]: the samples and how they become batches.

    tokenizer: path of tokenizer.json or of the folder that holds it.
    files: what is trained on; none with rollout.prompts.   held_out: what is only evaluated on (same form).
    held_out_share: share of every training file that is put aside when `held_out` is empty.
    sequence_length: tokens of a row (T).   batch_size: rows of a step (B).
    accumulate: parts that a step's rows are computed in, one after the other, where memory does not hold all.
    loss_on: "all" tokens, or "answers": only what the assistant says.
    prompt_format: of conversations ("messages"), "preview" or "0813".
    seed: of the shuffling.
    """

    tokenizer: str
    files: tuple[FileSection, ...] = ()
    held_out: tuple[FileSection, ...] = ()
    held_out_share: float = 0.01
    sequence_length: int = 256
    batch_size: int = 16
    accumulate: int = 1
    loss_on: str = "all"
    prompt_format: PromptFormat = "preview"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class OptimizerSection:
    """[optimizer]: Muon for matrices, AdamW for the rest (V4 report 2.4).

    matrices: "muon", or "adamw" for everything.
    lr: peak rate of Muon.   adamw_lr: peak rate of AdamW.
    weight_decay: decoupled, multiplied by the rate; vectors and scalars have none.
    momentum, gamma, steps: Muon's momentum, update scale and Newton-Schulz steps (fast, then settling).
    beta1, beta2, eps: AdamW's.   clip: largest norm of the whole gradient; 0 turns clipping off.
    """

    matrices: str = "muon"
    lr: float = 4e-3
    adamw_lr: float = 4e-3
    weight_decay: float = 0.1
    momentum: float = 0.95
    gamma: float = 0.18
    steps: tuple[int, ...] = (8, 2)
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-10
    clip: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ScheduleSection:
    """[schedule]: the rate as a function of the share of the budget that is used up.

    kind: "cosine", "wsd" (constant, then linear decay) or "constant".
    warmup: share of the budget over which the rate rises from 0.
    decay: "wsd" only: share of the budget at the end over which it falls.
    final: rate at the end as a share of the peak.
    """

    kind: str = "cosine"
    warmup: float = 0.02
    decay: float = 0.3
    final: float = 0.1


@dataclass(frozen=True, kw_only=True)
class LossSection:
    """[loss]: weights beside the next-token loss.

    mtp: of the multi-token prediction loss.   mtp_final: the same from the share mtp_final_from on.
    mtp_every: the MTP block is run on every n-th step only (its weight is multiplied by n).
    balance: of the sequence-wise expert balance loss.   bias_update: step of gate.bias against the load.
    indexer: of the indexers' own loss (see indexer.py); 0 leaves the indexers as they are.
    indexer_every: it is computed on every n-th step only (its weight is multiplied by n).
    dense_until: share of the budget up to which attention sees every compressed entry, whatever the
        indexers choose.
    """

    mtp: float = 0.3
    mtp_final: float = 0.1
    mtp_final_from: float = 0.7
    mtp_every: int = 1
    balance: float = 1e-4
    bias_update: float = 1e-3
    indexer: float = 0.0
    indexer_every: int = 1
    dense_until: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DistilSection:
    """[distil]: learning from another model's logits, not from the text alone.

    teacher: folder of a V4 checkpoint, or of a causal language model of transformers, with the same
        tokenizer; "" distils nothing.
    share: of the divergence in the next-token loss; the rest is cross-entropy with the text.
    direction: "forward", KL(teacher || student), or "reverse".
    top_k: tokens of the teacher that count one by one, all others as one; 0 is the whole vocabulary.
    temperature: divides the logits of both.
    cache: folder that keeps the teacher's hidden states, so that it is asked once about each sample; "" asks
        it in every step.
    """

    teacher: str = ""
    share: float = 0.9
    direction: str = "forward"
    top_k: int = 0
    temperature: float = 1.0
    cache: str = ""


@dataclass(frozen=True, kw_only=True)
class LoraSection:
    """[lora]: a low-rank adapter of a checkpoint is trained, and the checkpoint's own weights are not.

    base: checkpoint folder or repository id, whose weights stay packed; "" trains whole weights.
    rank, alpha: W becomes W + alpha / rank · B·A, A [rank, I] random and B [O, rank] zero at first.
    targets: names of the matrices, with * and ?: layers.N.attn.wq_a, wq_b, wkv, wo_a or wo_b,
        layers.N.ffn.shared_experts.w1, w2 or w3, layers.N.ffn.experts.w1 ... (all experts of a layer).
    """

    base: str = ""
    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = LORA_TARGETS


@dataclass(frozen=True, kw_only=True)
class StabilitySection:
    """[stability]: Anticipatory Routing after a spike of the loss (see anticipation.py).

    spike: standard deviations above the mean of recent losses that count as one; 0 never looks.
    lag: steps between the copies of the weights that choose experts after a spike.
    hold: steps for which they choose.
    """

    spike: float = 0.0
    lag: int = 20
    hold: int = 100


@dataclass(frozen=True, kw_only=True)
class QuantisationSection:
    """[quantisation]: rounding in the forward pass, so that the exported checkpoint is the trained one.

    start: share of the budget from which weights are rounded; 1 never does, 0 always.
    experts: "fp4", "fp8" or "bf16".   linears: "fp8" or "bf16": formats of the exported checkpoint.
    """

    start: float = 0.85
    experts: str = "fp4"
    linears: str = "fp8"


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """[run]: where, how long and how.

    dir: run folder (run.json, metrics.csv, loss.png, curves.png, data/, checkpoint-*/, export/).
    steps / seconds: the budget; exactly one is positive.
    eval_every: steps between evaluations on held-out rows.   eval_batches: batches of one evaluation.
    checkpoint_every: steps between checkpoints.   checkpoint_seconds: or so many seconds, whichever is
        first; 0 is off.
    keep: checkpoints kept.   log_every: steps between printed lines.
    dtype: "float32" or "bfloat16" (autocast over float32 masters).
    device: where the model lies.   threads: CPU threads; 0 leaves torch's choice.
    compile: hand the blocks to torch.compile.
    recompute: keep no activations inside blocks, compute them again in the backward pass: a third more
        arithmetic for a fraction of the memory.
    ema: decay a step of the moving average of the weights that is evaluated and exported; 0: the weights
        themselves.
    export: write the official layout to dir/export at the end.
    """

    dir: str
    steps: int = 0
    seconds: float = 0.0
    eval_every: int = 200
    eval_batches: int = 8
    checkpoint_every: int = 500
    checkpoint_seconds: float = 0.0
    keep: int = 2
    log_every: int = 10
    dtype: str = "bfloat16"
    device: str = "cpu"
    threads: int = 0
    compile: bool = False
    recompute: bool = False
    ema: float = 0.0
    export: bool = True


@dataclass(frozen=True, kw_only=True)
class ParallelSection:
    """[parallel]: what torchrun's processes are to each other (see parallel.py).

    replicas: how often the routed experts exist; the processes of each replica divide them.
    """

    replicas: int = 1


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The whole file; sections not written take their defaults."""

    data: DataSection
    run: RunSection
    model: ModelSection = field(default_factory=ModelSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    loss: LossSection = field(default_factory=LossSection)
    distil: DistilSection = field(default_factory=DistilSection)
    lora: LoraSection = field(default_factory=LoraSection)
    rollout: RolloutSection = field(default_factory=RolloutSection)
    on_policy: OnPolicySection = field(default_factory=OnPolicySection)
    grpo: GrpoSection = field(default_factory=GrpoSection)
    stability: StabilitySection = field(default_factory=StabilitySection)
    quantisation: QuantisationSection = field(default_factory=QuantisationSection)
    parallel: ParallelSection = field(default_factory=ParallelSection)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """From parsed TOML.  Raises ConfigError naming an unknown key, a wrong type or a value out of
        range.
        """
        config = build(cls, values, "")
        _check(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, for a run's record."""
        return asdict(self)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read CONFIG.toml and apply `section.key=value` overrides (values in TOML; a bare word is a string).

    Paths in the file are relative to the working directory.  Raises ConfigError.
    """
    return TrainConfig.from_dict(read_toml(path, overrides))


CHOICES: dict[str, tuple[str, ...]] = {
    "model.kind": ("v4", "dense"),
    "data.loss_on": ("all", "answers"),
    "data.prompt_format": ("preview", "0813"),
    "optimizer.matrices": ("muon", "adamw"),
    "distil.direction": ("forward", "reverse"),
    "schedule.kind": ("cosine", "wsd", "constant"),
    "quantisation.experts": ("fp4", "fp8", "bf16"),
    "quantisation.linears": ("fp8", "bf16"),
    "run.dtype": ("float32", "bfloat16"),
}
SHARES = (
    "schedule.warmup",
    "schedule.decay",
    "schedule.final",
    "loss.mtp_final_from",
    "loss.dense_until",
    "distil.share",
    "run.ema",
    "quantisation.start",
    "data.held_out_share",
)
POSITIVE = (
    "data.sequence_length",
    "data.batch_size",
    "data.accumulate",
    "stability.lag",
    "stability.hold",
    "loss.mtp_every",
    "loss.indexer_every",
    "lora.rank",
    "run.keep",
    "run.log_every",
    "parallel.replicas",
)
WHOLE = ("loss", "distil", "stability", "quantisation")
"""Sections of what training an adapter has nothing of: its one loss is the next token's."""


def _check(config: TrainConfig) -> None:
    """Ranges; types are already right."""

    def value(key: str) -> Any:
        section, name = key.split(".")
        return getattr(getattr(config, section), name)

    for key, allowed in CHOICES.items():
        if value(key) not in allowed:
            raise ConfigError(f"{key} is {value(key)!r}; allowed: {', '.join(allowed)}")
    for key in SHARES:
        if not 0.0 <= value(key) <= 1.0:
            raise ConfigError(f"{key} is {value(key)}; it is a share, so between 0 and 1")
    for key in POSITIVE:
        if value(key) < 1:
            raise ConfigError(f"{key} is {value(key)}; it must be at least 1")
    _check_lora(config)
    if config.distil.temperature <= 0 or config.distil.top_k < 0:
        raise ConfigError(
            f"distil.temperature is {config.distil.temperature:g} and distil.top_k {config.distil.top_k}; "
            "the first must be above 0, the second at least 0"
        )
    if config.distil.teacher and config.model.kind != "v4":
        raise ConfigError(f"distil.teacher is given with model.kind {config.model.kind!r}; allowed: v4")
    if config.data.batch_size % config.data.accumulate:
        raise ConfigError(
            f"data.accumulate is {config.data.accumulate}, which does not divide the "
            f"{config.data.batch_size} rows of data.batch_size"
        )
    steps = config.optimizer.steps
    if len(steps) != 2 or min(steps) < 0:
        raise ConfigError(
            f"optimizer.steps is {list(steps)}; give two counts: fast and settling steps, [8, 2] as published"
        )
    check_rollout(config)
    if not (config.data.files or config.rollout.prompts):
        raise ConfigError("data.files is empty; name at least one file")
    if (config.run.steps > 0) == (config.run.seconds > 0):
        raise ConfigError(
            f"give either run.steps or run.seconds (now {config.run.steps} and {config.run.seconds:g})"
        )


def _check_lora(config: TrainConfig) -> None:
    lora = config.lora
    if not lora.base:
        if not config.model.config:
            raise ConfigError("[model] lacks: config (or give lora.base, to train an adapter)")
        return
    if not lora.targets or not 0 < lora.alpha < float("inf"):
        raise ConfigError(
            f"lora.targets is {list(lora.targets)} and lora.alpha {lora.alpha:g}; allowed: at least one "
            "target, and a number above 0"
        )
    if config.run.compile:
        raise ConfigError("run.compile is true with lora.base; allowed: false")
    if replace(config.model, seed=0) != ModelSection():
        raise ConfigError(
            "[model] is given with lora.base, whose own config.json counts; leave all but seed out"
        )
    for name in WHOLE:
        section = getattr(config, name)
        if section != type(section)():
            raise ConfigError(f"[{name}] is given with lora.base, where it has no effect; leave it out")
