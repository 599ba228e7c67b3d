"""A run's checkpoints: safetensors and JSON, complete or not there at all.

dir/checkpoint-00001200/  model.safetensors (float32 masters by parameter name) · optimizer.safetensors ·
state.json. Written under another name, flushed to disk and renamed, so a run killed at any instant resumes
from the newest one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from fourfold.errors import TrainError

PREFIX = "checkpoint-"
PARTIAL = ".partial-"
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Everything of a run that is not a tensor.

    step: steps done.   seconds: time spent training.   tokens: targets learnt from so far.
    epoch, row: position in the data.   fingerprint: of the data that position refers to.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    epoch: int = 0
    row: int = 0
    fingerprint: str = ""


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = folder.glob(f"{PREFIX}*") if folder.is_dir() else iter(())
    return sorted(path for path in found if path.is_dir() and (path / STATE).is_file())


def save(
    folder: Path,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: RunState,
    config: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write one checkpoint and drop all but the newest `keep`.  Returns its folder."""
    target = folder / f"{PREFIX}{state.step:08d}"
    partial = folder / f"{PARTIAL}{state.step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: value.detach().contiguous() for name, value in model.items()}, partial / MODEL)
    save_file({name: value.contiguous() for name, value in optimizer.items()}, partial / OPTIMIZER)
    text = json.dumps({"state": asdict(state), "config": config}, indent=2, ensure_ascii=False)
    (partial / STATE).write_text(text + "\n", encoding="utf-8")
    for file in (*partial.iterdir(), partial):
        _flush(file)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    _flush(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], RunState]:
    """(model tensors, optimiser tensors, state) of one checkpoint.  Raises TrainError if it cannot be
    read.
    """
    try:
        state = RunState(**json.loads((path / STATE).read_text(encoding="utf-8"))["state"])
        return load_file(path / MODEL), load_file(path / OPTIMIZER), state
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainError(f"{path} is not a checkpoint of this version: {error}") from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
