"""Weights to start from: a run's checkpoint, or an exported or published one, whose formats are decoded."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.errors import TrainError
from fourfold.kernels.formats import decode
from fourfold.train import checkpoint
from fourfold.weights.load import read_checkpoint


def read_masters(folder: Path) -> dict[str, Tensor]:
    """Parameter name -> float32 (integers as they are).  TrainError: the folder holds neither kind.

    ConfigError, CheckpointError: it holds a checkpoint in the official layout that cannot be read.
    """
    if (folder / checkpoint.STATE).exists():
        return checkpoint.load(folder)[0]
    if not (folder / "config.json").exists():
        raise TrainError(
            f"model.init_from is {folder}, which holds no {checkpoint.STATE} of a run and no config.json; "
            "give a run's checkpoint folder or an exported checkpoint"
        )
    stored = dict(read_checkpoint(folder, ModelConfig.from_file(folder / "config.json"), progress=False))
    scales = {name for name in stored if name.endswith(".scale") and _weight_of(name) in stored}
    return {
        name: decode(tensor, stored.get(f"{name.removesuffix('weight')}scale"))
        if name.endswith(".weight")
        else tensor.float()
        if tensor.is_floating_point()
        else tensor
        for name, tensor in stored.items()
        if name not in scales
    }


def _weight_of(scale: str) -> str:
    return f"{scale.removesuffix('scale')}weight"
