"""A checkpoint folder or repo id -> a model that is ready to run."""

from __future__ import annotations

from pathlib import Path

import torch

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.errors import RequestError
from fourfold.model.transformer import Transformer
from fourfold.tiers import Plan, TieredExperts, plan
from fourfold.tiers.copy import copied
from fourfold.tiers.files import say
from fourfold.tokenizer import Tokenizer
from fourfold.weights.hub import resolve
from fourfold.weights.load import checkpoint_items, read_items


def shipped_model() -> Path:
    """Folder of the small model that comes with the package."""
    return Path(__file__).parent / "models" / "fourfold-16m"


def load(
    path_or_repo_id: str | Path,
    device: str | torch.device = "cpu",
    numerics: str = "exact",
    ram: str | int | None = None,
    expert_copy: str | Path | None = None,
) -> Transformer:
    """The model of a checkpoint folder or Hugging Face repo id, its weights packed as stored.

    numerics: "exact" (float32 mathematics of the stored weights), "deployed" (the published roundings of
    activations and KV) or "fast" (bf16 inputs of products).  `.tokenizer` is set where there is one.
    ram: how much of it weights may take, in bytes or as "24GiB", on the CPU: routed experts that do not fit
    are read from disk when they are needed, `.tiers` counts them.  None: the free RAM less an 8th, if the
    model does not fit into that.  expert_copy: a folder that then gets a page-aligned copy of the experts,
    once, for faster reads.
    DownloadError, ConfigError, TokenizerError, CheckpointError: nothing is half loaded.  RequestError,
    KernelError: an unusable device; no size, or one too small for the model.  All that is small is read and
    checked before the weights.
    """
    target = usable_device(device)
    if ram is not None and target.type != "cpu":
        raise RequestError(f"ram is {ram!r} with device {str(device)!r}; allowed: with device cpu")
    folder = resolve(path_or_repo_id)
    config = ModelConfig.from_file(folder / "config.json")
    with torch.device("meta"):
        model = Transformer(config, numerics)
    if (folder / "tokenizer.json").exists():
        model.tokenizer = Tokenizer(folder)
    items = checkpoint_items(folder, config)
    tiers = plan(items, config, ram) if target.type == "cpu" else None
    if tiers is not None:
        model.tiers = _tiered(model, tiers, expert_copy)
        items = [item for item in items if item.expert is None]
    for name, tensor in read_items(items, config, target):
        model.assign(name, tensor)
    return model.eval()


def _tiered(model: Transformer, tiers: Plan, copy_in: str | Path | None) -> TieredExperts:
    """Slots in the place of the model's experts, and what fills them; says so on stderr."""
    if copy_in is None:
        say(f"{tiers}; a page-aligned expert copy would be read faster")
        return TieredExperts(model, tiers.table, tiers.slots)
    say(str(tiers))
    return TieredExperts(model, copied(tiers.table, Path(copy_in)), tiers.slots)


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
