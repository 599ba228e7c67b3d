"""A trained model as a checkpoint in the official layout, with its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.train.config import QuantisationSection
from fourfold.weights.export import official_tensors
from fourfold.weights.writer import write_checkpoint


def export(
    parameters: Mapping[str, Tensor],
    model_config: ModelConfig,
    formats: QuantisationSection,
    target: Path,
    tokenizer: Path,
) -> Path:
    """Write `target`, replacing what an earlier run left there; returns it.

    parameters: float32 masters by name.  tokenizer: tokenizer.json or its folder, whose other files come
    along.  Values are those of `quantise.rounded_weights`.  CheckpointError as `write_checkpoint`.
    """
    tensors = official_tensors(model_config, parameters, experts=formats.experts, linears=formats.linears)  # type: ignore[arg-type]
    sides = tokenizer if tokenizer.is_dir() else tokenizer.parent
    return write_checkpoint(target, model_config, tensors, side_files_from=sides, overwrite=True)
