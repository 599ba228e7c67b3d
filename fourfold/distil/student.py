"""Training a student on the data set, and what it could before and can after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fourfold
from fourfold.distil.config import DistilConfig
from fourfold.errors import ConfigError
from fourfold.evaluation.measures import Evaluator, Figure
from fourfold.evaluation.tasks import Task, read_task
from fourfold.train.config import TrainConfig
from fourfold.train.strict import read_toml
from fourfold.train.trainer import Trainer, TrainResult

MAX_TOKENS = 128
"""Of an answer that must match."""


@dataclass(frozen=True, kw_only=True)
class Taught:
    """result: of the training.  before, after: figures of each task, by its name."""

    result: TrainResult
    before: dict[str, list[Figure]]
    after: dict[str, list[Figure]]


def training(config: DistilConfig, data: Path) -> TrainConfig:
    """The student's training configuration with the data set in it.  ConfigError."""
    values = read_toml(config.student.train)
    section = values.setdefault("data", {})
    if not isinstance(section, dict):
        raise ConfigError(f"{config.student.train}: data is no section")
    section["files"] = [{"path": str(data)}]
    return TrainConfig.from_dict(values)


def teach(config: DistilConfig, data: Path) -> Taught:
    """Train the student, or go on with it, and measure what it started from and what it becomes."""
    tasks = [read_task(Path(path)) for path in config.student.tasks]
    trainer = Trainer(training(config, data))
    try:
        begin = trainer.folder / "before"
        if tasks and trainer.state.step == 0:
            trainer.objective.export(begin, Path(trainer.config.data.tokenizer))
        result = trainer.run()
        if result.export is None:
            raise ConfigError("run.export is false in the student's configuration; allowed: true")
        before = _measured(trainer, begin, tasks)
        after = _measured(trainer, result.export, tasks)
    finally:
        trainer.close()
    return Taught(result=result, before=before, after=after)


def _measured(trainer: Trainer, folder: Path, tasks: Sequence[Task]) -> dict[str, list[Figure]]:
    """The figures of the checkpoint in `folder`."""
    if not tasks:
        return {}
    model = fourfold.load(folder, numerics="fast")
    evaluator = Evaluator(model, trainer.config.data.prompt_format, MAX_TOKENS)
    return {task.name: evaluator.run(task, lambda done: None) for task in tasks}
