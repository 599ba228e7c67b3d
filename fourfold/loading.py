"""A checkpoint folder or repo id -> a model that is ready to run."""

from __future__ import annotations

from pathlib import Path

import torch

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.errors import RequestError
from fourfold.model.transformer import Transformer
from fourfold.tokenizer import Tokenizer
from fourfold.weights.hub import resolve
from fourfold.weights.load import read_checkpoint


def shipped_model() -> Path:
    """Folder of the small model that comes with the package."""
    return Path(__file__).parent / "models" / "fourfold-16m"


def load(
    path_or_repo_id: str | Path, device: str | torch.device = "cpu", numerics: str = "exact"
) -> Transformer:
    """The model of a checkpoint folder or Hugging Face repo id, its weights packed as stored.

    numerics: "exact" (float32 mathematics of the stored weights) or "deployed" (the published roundings of
    activations and KV).  `.tokenizer` is set where the checkpoint has one.
    DownloadError, ConfigError, TokenizerError, CheckpointError: nothing is half loaded.  RequestError,
    KernelError: an unusable device.  All that is small is read and checked before the weights.
    """
    target = usable_device(device)
    folder = resolve(path_or_repo_id)
    config = ModelConfig.from_file(folder / "config.json")
    with torch.device("meta"):
        model = Transformer(config, numerics)
    if (folder / "tokenizer.json").exists():
        model.tokenizer = Tokenizer(folder)
    for name, tensor in read_checkpoint(folder, config, target):
        model.assign(name, tensor)
    return model.eval()


def usable_device(name: str | torch.device) -> torch.device:
    """torch's device of this name; a package that brings it and its kernels is imported.

    RequestError: there is no such device here.  KernelError: its package is broken.
    """
    kernels.discover(str(name).split(":")[0])
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(
            f"device {str(name)!r} cannot be used here ({reason}); allowed on every machine: cpu"
        ) from error
    return device
