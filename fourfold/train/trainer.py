"""The training loop: budget, schedule, evaluation, checkpoints and the record of a run."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from fourfold import __version__
from fourfold.conformance.report import machine
from fourfold.errors import ConfigError, TrainError
from fourfold.train import checkpoint
from fourfold.train.anticipation import Anticipation
from fourfold.train.average import Average
from fourfold.train.checkpoint import RunState
from fourfold.train.config import TrainConfig
from fourfold.train.corpus import Encoder
from fourfold.train.data import Batch, PackedData, Stream
from fourfold.train.divided import DividedOptimizer
from fourfold.train.objective import Objective, build_objective
from fourfold.train.on_policy import RolloutObjective
from fourfold.train.optim import Optimizer
from fourfold.train.parallel import begin, leave, own_device
from fourfold.train.quantise import rounded_weights
from fourfold.train.record import COLUMNS, Metrics, Progress, note_start, plot, plot_columns
from fourfold.train.rollout import Rollouts
from fourfold.train.runtime import prepare_cpu
from fourfold.train.schedule import rate
from fourfold.train.store import Stored, store_samples


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run gives back.  export: folder of the official layout, or None."""

    folder: Path
    steps: int
    tokens: int
    seconds: float
    loss: float
    held_out_loss: float | None
    export: Path | None


def train(config: TrainConfig) -> TrainResult:
    """Train, or go on with the run that config.run.dir already holds, until the budget is spent.

    Raises ConfigError, TrainError, TokenizerError or CheckpointError, before the first step if possible.
    """
    trainer = Trainer(config)
    try:
        return trainer.run()
    finally:
        trainer.close()


class Trainer:
    """One run: everything that a step needs, built and checked before the first step."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        prepare_cpu(config.run.threads)
        self.folder = Path(config.run.dir)
        self.device = own_device(config.run.device)
        self.ranks = begin(config.parallel.replicas, self.device)
        check_ranks(config, self.ranks.size)
        self.dtype = getattr(torch, config.run.dtype)
        encoder = Encoder(config.data.tokenizer, config.data.prompt_format)
        self.data: Stream
        with self.ranks.in_turn():
            self.data, self.held_out = _datasets(config, encoder)
        self.objective: Objective = build_objective(config, encoder.tokenizer, self.device)
        if isinstance(self.objective, RolloutObjective):
            self.data = Rollouts(config, encoder, self.objective, self._rounded)
        named = self.objective.module.named_parameters()
        self.optimizer = (
            DividedOptimizer(named, config.optimizer, self.ranks)
            if self.ranks.size > 1
            else Optimizer(named, config.optimizer)
        )
        self.parameters = dict(self.objective.module.named_parameters())
        self.average = Average(self.parameters, config.run.ema)
        self.state = self._resume()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.metrics = self._record() if self.ranks.first else None
        self.progress = Progress(config.run.log_every, shown=self.ranks.first)
        self._saved_at = self.state.seconds
        self._started = time.perf_counter() - self.state.seconds

    def close(self) -> None:
        """Leave terminal, files and the other processes in order."""
        leave()
        self.progress.close()
        if self.metrics is not None:
            self.metrics.close()

    def _resume(self) -> RunState:
        found = checkpoint.checkpoints(self.folder)
        fingerprint = self.data.fingerprint()
        if not found:
            return RunState(fingerprint=fingerprint)
        model, optimizer, state = checkpoint.load(found[-1])
        self.objective.load_masters(self.ranks.own(model), found[-1])
        try:
            for part in self._stateful():
                part.load(self.ranks.own(optimizer))
        except (KeyError, RuntimeError) as error:
            raise TrainError(
                f"{found[-1]} was trained with another optimizer or model: {error}; "
                "change run.dir or the config back"
            ) from error
        if state.fingerprint == fingerprint:
            self.data.position = (state.epoch, state.row)
        else:
            # Other data, so the old position means nothing: a fresh epoch that no earlier one was shuffled
            # like.
            self.data.position = (state.epoch + 1, 0)
        return replace(state, fingerprint=fingerprint)

    def _record(self) -> Metrics:
        environment = machine(self.config.run.device) | {"fourfold": __version__, "ranks": self.ranks.size}
        note_start(self.folder / "run.json", self.config.to_dict(), self.state.step, environment)
        return Metrics(self.folder / "metrics.csv", self.state.step)

    @property
    def share(self) -> float:
        """Share of the budget that is used up."""
        run = self.config.run
        used = self.state.step / run.steps if run.steps else self.state.seconds / run.seconds
        return min(used, 1.0)

    def _stateful(self) -> tuple[Optimizer, Average, Anticipation]:
        """Whose state a checkpoint keeps beside the weights."""
        return self.optimizer, self.average, self.objective.anticipation

    def _rounded(self) -> AbstractContextManager[None]:
        if self.share >= self.config.quantisation.start:
            return rounded_weights(self.parameters, self.objective.formats)
        return nullcontext()

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def run(self) -> TrainResult:
        """Steps until the budget is spent, then the last checkpoint, the plot and the export."""
        self.progress.say(f"fourfold: {self.objective.describe()}")
        begin = f"continuing at step {self.state.step}" if self.state.step else "starting"
        self.progress.say(f"fourfold: {self.data.describe()}; {begin} in {self.folder}")
        self.objective.prepare(self.data, self.progress)
        values: dict[str, float] = {}
        held_out: float | None = None
        while self.share < 1.0:
            values = self.step()
            last = self.share >= 1.0
            if self.held_out is not None and (last or self._every(self.config.run.eval_every)):
                held_out = self.evaluate()
                values["held_out_loss"] = held_out
                self.progress.say(f"step {self.state.step}: held-out loss {held_out:.4f}")
            if self.metrics is not None:
                self.metrics.add(values)
            self.progress.step(values)
            if last or self._checkpoint_due():
                self.save()
        if self.ranks.first:
            plot({self.config.model.kind: self.folder / "metrics.csv"}, self.folder / "loss.png")
            plot_columns(self.folder / "metrics.csv", self.folder / "curves.png")
        return TrainResult(
            folder=self.folder,
            steps=self.state.step,
            tokens=self.state.tokens,
            seconds=self.state.seconds,
            loss=values.get("loss", float("nan")),
            held_out_loss=held_out,
            export=self._export(),
        )

    def step(self) -> dict[str, float]:
        """One batch: forward, backward, update.  Returns the numbers of metrics.csv."""
        share, number = self.share, self.state.step
        batch = self.data.next().to(self.device)
        begun = time.perf_counter()
        anticipation = self.objective.anticipation
        anticipated = anticipation.active
        values = self._gradients(batch, share, number)
        if not math.isfinite(values["loss"]):
            raise TrainError(
                f"the loss is {values['loss']} at step {number}; lower optimizer.lr and continue from the "
                "last checkpoint"
            )
        factor = rate(self.config.schedule, share if share > 0 else 1e-3 * self.config.schedule.warmup)
        if anticipation.spiked(values["loss"]):
            self.progress.say(
                f"step {number}: the loss rose to {values['loss']:.3f}; the step is left out and older "
                f"weights choose the experts for {self.config.stability.hold} steps"
            )
            self.optimizer.drop()
        else:
            values["grad_norm"] = self.optimizer.step(factor)
        values |= self.objective.after_step()
        self.average.update()
        anticipation.after_step(number + 1)
        seconds = self.ranks.agreed(time.perf_counter() - self._started)
        epoch, row = self.data.position
        self.state = replace(
            self.state,
            step=number + 1,
            seconds=seconds,
            tokens=self.state.tokens + batch.learnt,
            epoch=epoch,
            row=row,
        )
        return values | {
            "step": self.state.step,
            "seconds": seconds,
            "tokens": self.state.tokens,
            "share": share,
            "lr": factor * self.config.optimizer.lr,
            "tokens_per_second": batch.ids.numel() / (time.perf_counter() - begun),
            "rounded": float(share >= self.config.quantisation.start),
            "anticipated": float(anticipated),
        }

    def _gradients(self, batch: Batch, share: float, number: int) -> dict[str, float]:
        """Gradients of this rank's part of the batch, part by part; the numbers of all, weighted like their
        losses."""
        values: dict[str, float] = {}
        parts = self.config.data.accumulate
        mine = slice(parts * self.ranks.rank, parts * (self.ranks.rank + 1))
        with self._rounded():
            for part in batch.split(parts * self.ranks.size)[mine]:
                weight = part.learnt / max(batch.learnt, 1)
                with self._autocast():
                    loss, numbers = self.objective.loss(part, share, number)
                (loss * weight).backward()
                for name, value in numbers.items():
                    values[name] = values.get(name, 0.0) + weight * value
        return self.ranks.totals(values, COLUMNS)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean held-out loss in nats per target, with the weights as they would be exported now.

        Every rank computes the same rows: their experts are everywhere.
        """
        assert self.held_out is not None
        rows = self.held_out.window_rows(0)
        size = self.config.data.batch_size
        total, count = 0.0, 0
        with self.average.applied(), self._rounded(), self._autocast():
            for start in range(0, min(len(rows), size * self.config.run.eval_batches), size):
                batch = self.held_out.batch(rows[start : start + size]).to(self.device)
                total += self.objective.evaluate(batch) * batch.learnt
                count += batch.learnt
        return total / max(count, 1)

    def save(self) -> None:
        """Write a checkpoint now: one, of the whole model, whatever the number of ranks."""
        self._saved_at = self.state.seconds
        masters = self.ranks.whole(self.objective.masters())
        kept = {name: value for part in self._stateful() for name, value in part.state().items()}
        kept = self.ranks.whole(kept)
        with self.ranks.in_turn():
            if self.ranks.first:
                keep = self.config.run.keep
                checkpoint.save(self.folder, masters, kept, self.state, self.config.to_dict(), keep)

    def _every(self, steps: int) -> bool:
        return steps > 0 and self.state.step % steps == 0

    def _checkpoint_due(self) -> bool:
        run = self.config.run
        late = run.checkpoint_seconds > 0 and self.state.seconds - self._saved_at >= run.checkpoint_seconds
        return late or self._every(run.checkpoint_every)

    def _export(self) -> Path | None:
        if not self.config.run.export:
            return None
        with self.average.applied():
            return self.objective.export(self.folder / "export", Path(self.config.data.tokenizer))


def check_ranks(config: TrainConfig, ranks: int) -> None:
    """What needs several processes to be right.  ConfigError."""
    parts = config.data.accumulate * ranks
    if config.data.batch_size % parts:
        raise ConfigError(
            f"data.batch_size is {config.data.batch_size}, which {ranks} processes of data.accumulate "
            f"{config.data.accumulate} cannot share; make it a multiple of {parts}"
        )
    for key, value in {"lora.base": config.lora.base, "rollout.prompts": config.rollout.prompts}.items():
        if ranks > 1 and value:
            raise ConfigError(f"{key} is {value!r} with {ranks} processes; allowed: one process")
    if ranks > 1 and config.distil.cache:
        raise ConfigError(
            f"distil.cache is {config.distil.cache!r} with {ranks} processes, which would all write it; "
            'set it to "", so that the teacher is asked in every step'
        )


def _datasets(config: TrainConfig, encoder: Encoder) -> tuple[PackedData, PackedData | None]:
    """(training stream, held-out rows or None)."""
    data, folder = config.data, Path(config.run.dir) / "data"
    samples = store_samples(encoder, data.files, folder) if data.files else None
    aside: Stored | None = None
    if data.held_out:
        aside = store_samples(encoder, tuple(replace(s, weight=1.0) for s in data.held_out), folder)
    elif samples is not None:
        samples, aside = samples.split(data.held_out_share, data.seed)
    if samples is not None and not samples:
        raise TrainError(f"all samples were held out; lower data.held_out_share (now {data.held_out_share})")
    stream = partial(
        PackedData,
        length=data.sequence_length,
        batch_size=data.batch_size,
        answers_only=data.loss_on == "answers",
        pad=encoder.pad,
        seed=data.seed,
    )
    return stream(samples or []), stream(aside) if aside else None
