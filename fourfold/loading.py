"""A checkpoint folder or repo id -> a model that is ready to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.errors import RequestError
from fourfold.model.adapters import Adapter, LowRank
from fourfold.model.numerics import Kv
from fourfold.model.transformer import Transformer
from fourfold.tiers import Plan, TieredExperts, plan, plan_beside
from fourfold.tiers.copy import copied
from fourfold.tiers.counts import ExpertCounts
from fourfold.tiers.files import say
from fourfold.tiers.split import busiest, held_items
from fourfold.tokenizer import Tokenizer
from fourfold.weights.adapter import base_fingerprint, read_adapter
from fourfold.weights.hub import resolve
from fourfold.weights.load import Item, checkpoint_items, read_items


def shipped_model() -> Path:
    """Folder of the small model that comes with the package."""
    return Path(__file__).parent / "models" / "fourfold-16m"


def load(
    path_or_repo_id: str | Path,
    device: str | torch.device = "cpu",
    numerics: str = "exact",
    ram: str | int | None = None,
    expert_copy: str | Path | None = None,
    device_memory: str | int | None = None,
    kv: Kv | None = None,
    expert_counts: str | Path | None = None,
) -> Transformer:
    """The model of a checkpoint folder or Hugging Face repo id, its weights packed as stored.

    numerics: "exact" (float32 mathematics of the stored weights), "deployed" (the published roundings of
    activations and KV) or "fast" (bf16 inputs of products).  `.tokenizer` is set where there is one.
    ram: how much of it weights may take, in bytes or as "24GiB": routed experts that do not fit are read
    from disk when they are needed, `.tiers` counts them.  None: the free RAM less an 8th, if the model does
    not fit into that.  expert_copy: a folder that then gets a page-aligned copy of the experts, once, for
    faster reads.  device_memory: the same of an accelerator's; experts that do not fit there are the CPU's.
    expert_counts: a file that counts how often each expert is chosen, over all runs that name it, where some
    lie elsewhere; the most used ones then go to the accelerator, so that answers may round otherwise.
    kv: how an engine's cache keeps windows, entries and index keys: "bf16", or "published", FP8 and FP4 in
    half the bytes; exact numerics keep float32.  None: "bf16".  Deployed numerics round to FP8 and FP4
    anyway, so that both give the same bits; fast ones round so with "published" only.
    DownloadError, ConfigError, TokenizerError, CheckpointError: nothing is half loaded.  RequestError,
    KernelError: an unusable device; no size, or one too small for the model.  All that is small is read and
    checked before the weights.
    """
    target = usable_device(device)
    if device_memory is not None and target.type == "cpu":
        raise RequestError(
            f"device_memory is {device_memory!r} with device 'cpu'; allowed: with an accelerator"
        )
    folder = resolve(path_or_repo_id)
    config = ModelConfig.from_file(folder / "config.json")
    with torch.device("meta"):
        model = Transformer(config, numerics, kv)
    model.folder = folder
    if (folder / "tokenizer.json").exists():
        model.tokenizer = Tokenizer(folder)
    items = checkpoint_items(folder, config)
    if target.type == "cpu":
        tiers = plan(items, config, ram)
    else:
        tiers = plan_beside(items, config, device_memory, _free_memory(target), ram)
    counts = None if tiers is None else ExpertCounts(tiers.table, expert_counts)
    if counts is None and expert_counts is not None:
        say(f"all experts are in one place: their uses are not counted in {expert_counts}")
    dense = items if tiers is None else [item for item in items if item.expert is None]
    for name, tensor in read_items(dense, config, target):
        model.assign(name, tensor)
    if tiers is not None and counts is not None:
        model.tiers = _tiered(model, tiers, expert_copy, items, counts)
    return model.eval()


def load_adapters(model: Transformer, folders: Mapping[str, str | Path]) -> dict[str, Adapter]:
    """Adapters for a loaded model, by name, on its device.

    CheckpointError: one is malformed, or was made for another base.  RequestError: the model was not loaded
    from a folder, or an accelerator shares its experts, which have adapters, with the CPU.
    """
    if not folders:
        return {}
    if model.folder is None:
        raise RequestError("adapters need a base that fourfold.load has read, to know that it is theirs")
    base = base_fingerprint(model.folder)
    found = {}
    for name, folder in folders.items():
        stored = read_adapter(Path(folder), model.config, base)
        if (
            model.tiers is not None
            and model.device.type != "cpu"
            and any(".experts." in m for m in stored.matrices)
        ):
            raise RequestError(
                f"adapter {name!r} is of experts, which lie on two devices; allowed: adapters of attention"
            )
        matrices = {
            f"{module}.weight": LowRank(a.to(model.device), b.to(model.device), stored.scale)
            for module, (a, b) in stored.matrices.items()
        }
        found[name] = Adapter(matrices, stored.digest)
    return found


def _free_memory(device: torch.device) -> int | None:
    """Bytes that an accelerator has left; None where its module does not say."""
    ask = getattr(getattr(torch, device.type, None), "mem_get_info", None)
    return None if ask is None else ask(device)[0]


def _tiered(
    model: Transformer,
    tiers: Plan,
    copy_in: str | Path | None,
    items: Sequence[Item],
    counts: ExpertCounts,
) -> TieredExperts:
    """Slots in the place of the model's experts, and what fills them; says so on stderr."""
    say(str(tiers) + ("; a page-aligned expert copy would be read faster" if copy_in is None else ""))
    on_device = None
    if tiers.on_device is not None:
        on_device = busiest(model, tiers.table, tiers.on_device, counts.before)
        if counts.before.any():
            say(f"the device's experts have {on_device.share(counts.before):.0%} of the uses counted so far")
        chosen = held_items(items, tiers.table, on_device)
        for name, tensor in read_items(chosen, model.config, model.device, rows=tiers.on_device):
            model.assign(name, tensor)
    table = tiers.table if copy_in is None else copied(tiers.table, Path(copy_in))
    return TieredExperts(model, table, tiers.slots, on_device, counts)


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
