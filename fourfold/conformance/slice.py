"""Two layers of V4-Flash at full width with random weights: the published shapes where there is little room.

What small cases cannot show: whether this device's kernels take the real widths, and how long a step needs.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fourfold
from fourfold.conformance.checkpoint import RANDOM, SAME, Bounds, near
from fourfold.conformance.report import Check, Finding, NotExercised, broken
from fourfold.kernels.waiting import wait
from fourfold.model.cache import Cache
from fourfold.model.transformer import Transformer
from fourfold.tiers.memory import free_ram, written
from fourfold.weights.inspect import part_sizes
from fourfold.weights.synth import preset, reduced, synthesise

LAYERS = 2  # CSA and HCA, one of them routed by token id
_SHAPE: dict[str, Any] = {
    "layers": LAYERS,
    "experts": 8,
    "overrides": {"vocab_size": 8192, "num_nextn_predict_layers": 0},
}
_PREFILL, _STEPS = 140, 3  # one HCA block and the first tokens of the next
_COPIES = 3  # on disk or in its cache, on the CPU, on the device


def check_slice(device: str) -> Iterator[Finding]:
    """Prefill and decode on `device` against the CPU, in exact and deployed numerics."""
    what = "two layers of V4-Flash"
    config = reduced(preset("flash"), **_SHAPE)
    size = sum(part.bytes for part in part_sizes(config).values())
    with tempfile.TemporaryDirectory(prefix="fourfold-slice-") as folder:
        free = free_ram()
        if shutil.disk_usage(folder).free < 2 * size or (free is not None and free < _COPIES * size):
            yield NotExercised(what, f"needs {written(2 * size)} of disk, {written(_COPIES * size)} of RAM")
            return
        synthesise(folder, like="flash", **_SHAPE, progress=False, overwrite=True)
        for numerics, bounds in (("exact", SAME), ("deployed", RANDOM["deployed"])):
            try:
                yield from _compare(Path(folder), device, numerics, bounds)
            except RuntimeError as error:
                yield broken("slice", numerics, f"{_PREFILL} tokens, then {_STEPS} one by one", error)


def _compare(folder: Path, device: str, numerics: str, bounds: Bounds) -> Iterator[Check]:
    labels = f"prefill of {_PREFILL} tokens", "one token at a time"
    runs = _run(folder, device, numerics), _run(folder, "cpu", numerics)
    for label, (got, seconds), (expected, reference_seconds) in zip(labels, *runs, strict=True):
        for check in near(numerics, label, got, expected, bounds, LAYERS):
            yield dataclasses.replace(
                check, group="slice", seconds=seconds, reference_seconds=reference_seconds
            )


def _run(folder: Path, device: str, numerics: str) -> list[tuple[Tensor, float]]:
    """Logits, and what they took: of the prefill, and of the steps, whose best time counts."""
    model = fourfold.load(folder, device=device, numerics=numerics)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (1, _PREFILL + _STEPS), generator=generator)
    cache = model.new_cache()
    prefill, *steps = [
        _timed(model, part.to(device), cache) for part in ids.split([_PREFILL, *[1] * _STEPS], dim=1)
    ]
    logits, seconds = zip(*steps, strict=True)
    return [prefill, (torch.cat(logits, dim=1), min(seconds))]


def _timed(model: Transformer, ids: Tensor, cache: Cache) -> tuple[Tensor, float]:
    wait(model.device)
    begun = time.perf_counter()
    logits = model(ids, cache=cache).logits
    wait(model.device)
    return logits.cpu(), time.perf_counter() - begun
