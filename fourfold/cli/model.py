"""Opening a checkpoint for a command: threads, loading, and the lines that say what runs on what."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import fourfold
from fourfold import kernels
from fourfold.cli import console
from fourfold.cli.groups import Drawing, Loading
from fourfold.engine.defaults import Recommended, recommended
from fourfold.engine.generate import GenerateOptions
from fourfold.errors import RequestError
from fourfold.kernels import cpu
from fourfold.tokenizer import FILE_NAME, Tokenizer
from fourfold.weights.hub import resolve

if TYPE_CHECKING:
    from fourfold.model.transformer import Transformer


@dataclass(frozen=True)
class Opened:
    """A loaded model with what its checkpoint says about using it."""

    model: Transformer
    tokenizer: Tokenizer
    name: str
    recommended: Recommended

    def sampler(self, drawing: Drawing, seed: int | None) -> GenerateOptions:
        """Keyword arguments for `generate`: the checkpoint's, and what the user chose."""
        sampling = replace(self.recommended.sampling, **drawing.given(), seed=seed)
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "seed": sampling.seed,
            "stop_tokens": self.recommended.stop_tokens,
        }


def use_threads(threads: int) -> None:
    """Compute with this many CPU threads; 0 leaves torch's choice."""
    if threads:
        torch.set_num_threads(threads)
        cpu.use_threads(threads)


def model_name(path: str | None) -> str:
    """The last part of a folder or repo id; None is the shipped model."""
    path = path or str(fourfold.shipped_model())
    return Path(path).name or path


def open_model(path: str | None, loading: Loading) -> Opened:
    """Load a checkpoint folder or repo id (None: the shipped model) and say so on stderr.

    What is small and can be wrong is read before the weights.
    """
    use_threads(loading.threads)
    name = model_name(path)
    start = time.perf_counter()
    folder = resolve(path or str(fourfold.shipped_model()))
    advice = recommended(folder)
    if advice.unused:
        console.note(f"of generation_config.json, {', '.join(advice.unused)} are not heeded")
    if not (folder / FILE_NAME).exists():
        raise RequestError(f"{name} has no {FILE_NAME}; put the model's own into its folder")
    model = fourfold.load(
        folder,
        loading.device,
        loading.numerics,
        loading.ram,
        loading.expert_copy,
        loading.device_memory,
        loading.kv,
        loading.expert_counts,
    )
    assert model.tokenizer is not None
    seconds = time.perf_counter() - start
    stored = sum(parameter.nbytes for parameter in model.parameters())
    console.note(
        f"{name}, {model.config.num_hidden_layers} layers, {console.size(stored)} "
        f"in {console.number(seconds)} s ({console.size(stored / seconds)}/s)"
    )
    if line := kernel_line(torch.device(loading.device).type):
        console.note(line)
    return Opened(model, model.tokenizer, name, advice)


def tiers_line(model: Transformer) -> str:
    """experts: 1,204 from RAM, 88 read ahead (12 more in vain), 310 not; 4.1 GiB read, 2.3 s stalled"""
    if model.tiers is None:
        return f"experts: all in {'RAM' if model.device.type == 'cpu' else 'device memory'}"
    stats = model.tiers.stats()
    there = f"{stats.device_hits:,} on the device, " if stats.on_device else ""
    return (
        f"experts: {there}{stats.hits:,} from RAM, {stats.prefetched:,} read ahead "
        f"({stats.prefetch_wasted:,} more in vain), {stats.misses:,} not; "
        f"{console.size(stats.bytes_read)} read, {console.number(stats.stall_seconds)} s stalled"
    )


def kernel_line(device: str) -> str:
    """Which operations fall back to the reference, or to T0 on an npu; empty when none does."""
    runs = kernels.table(device)
    slow = [name for name, backend in runs.items() if backend.startswith(("reference", "T0"))]
    own = [name for name in runs if name not in slow]
    if not slow:
        return ""
    if not own:
        return f"reference kernels: all of them (fourfold kernels --device {device} says why)"
    if len(own) < len(slow):
        return f"native kernels: {', '.join(own)}   (all others: reference)"
    return f"reference kernels: {', '.join(slow)}   (all others: native)"
