"""How far the numerics that were timed are from the exact ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

import fourfold
from fourfold.conformance.logits import kl_divergence
from fourfold.conformance.passage import passage_ids
from fourfold.model.transformer import Transformer

TOKENS = 512
_PIECE = 64  # tokens whose logits are compared at once: bounds the memory


def accuracy(folder: Path, numerics: str, device: str = "cpu") -> dict[str, Any]:
    """KL(exact ‖ chosen) in nats and the share of equal first choices, over 512 tokens of one sequence.

    Language, where the checkpoint has a tokenizer; pseudo-random ids otherwise.  The model is loaded twice,
    never both at once.
    """
    model = fourfold.load(folder, device=device, numerics="exact")
    length = min(TOKENS, model.config.max_position_embeddings)
    ids = passage_ids(model, length, length)
    text = model.tokenizer is not None
    exact = list(_logits(model, ids))
    del model
    model = fourfold.load(folder, device=device, numerics=numerics)
    kl, largest, same = 0.0, 0.0, 0
    for expected, got in zip(exact, _logits(model, ids), strict=True):
        divergence = kl_divergence(expected, got)
        kl, largest = kl + float(divergence.sum()), max(largest, float(divergence.max()))
        same += int((expected.argmax(-1) == got.argmax(-1)).sum())
    return {
        "numerics": numerics,
        "against": "exact",
        "tokens": length,
        "text": "language" if text else "pseudo-random",
        "kl_nats": kl / length,
        "kl_nats_largest": largest,
        "same_first_choice": same / length,
    }


def _logits(model: Transformer, ids: Tensor) -> Iterator[Tensor]:
    """[t, V] f32 for each piece of ids [1, T]."""
    cache = model.new_cache()
    for piece in ids.split(_PIECE, dim=1):
        yield model(piece.to(model.device), cache=cache).logits[0].cpu()
