"""Random adapters, for the tests of several folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fourfold.config import ModelConfig
from fourfold.weights.adapter import StoredAdapter, base_fingerprint, targets, write_adapter

EVERYTHING = ("layers.*",)


def random_adapter(
    base: Path, folder: Path, patterns: Sequence[str] = EVERYTHING, *, rank: int = 4, seed: int = 0
) -> Path:
    """An adapter of `base` that changes its answers a good deal."""
    draw = torch.Generator().manual_seed(seed)
    matrices = {}
    for module, place in targets(ModelConfig.from_file(base), patterns).items():
        lead = [] if place.experts is None else [place.experts]
        a = torch.randn(*lead, rank, place.width, generator=draw) * place.width**-0.5
        b = torch.randn(*lead, place.out, rank, generator=draw) * rank**-0.5
        matrices[module] = (a, b)
    adapter = StoredAdapter(rank, 2.0, matrices)
    return write_adapter(folder, adapter, base_fingerprint(base), base.name)
