"""A checkpoint with fewer slots than experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fourfold.config import ModelConfig
from fourfold.model.transformer import Transformer
from fourfold.tiers import TieredExperts
from fourfold.tiers.table import ExpertTable
from fourfold.weights.load import checkpoint_items, read_items

Tiered = Callable[..., Transformer]


def table_of(folder: Path) -> ExpertTable:
    """The experts of a checkpoint folder."""
    config = ModelConfig.from_file(folder / "config.json")
    return ExpertTable.of_checkpoint(checkpoint_items(folder, config), config.n_routed_experts)


@pytest.fixture
def tiered() -> Iterator[Tiered]:
    """tiered(folder, slots): a loaded model with that many slots, closed after the test."""
    models: list[Transformer] = []

    def build(folder: Path, slots: int, numerics: str = "exact", table: ExpertTable | None = None):
        config = ModelConfig.from_file(folder / "config.json")
        items = checkpoint_items(folder, config)
        with torch.device("meta"):
            model = Transformer(config, numerics).eval()
        dense = [item for item in items if item.expert is None]
        for name, tensor in read_items(dense, config, progress=False):
            model.assign(name, tensor)
        model.tiers = TieredExperts(model, table or table_of(folder), slots)
        models.append(model)
        return model

    yield build
    for model in models:
        assert model.tiers is not None
        model.tiers.close()
