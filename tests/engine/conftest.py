"""A model that needs no weights: what comes next is a fixed function of the whole text so far."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fourfold.tokenizer import tokenizer


class StubCache:
    """The ids that were seen."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    @property
    def length(self) -> int:
        return len(self.ids)

    def max_rollback(self) -> int:
        return min(64, self.length)

    def rollback(self, k: int) -> None:
        del self.ids[self.length - k :]


class StubModel:
    """Logits are noise that the ids so far determine.

    script: ids that it says first, whatever the noise, by the length that they follow.
    calls: how many tokens each forward was given.
    """

    device = torch.device("cpu")

    def __init__(self, tokenizer_file: Any, vocab_size: int = 400) -> None:
        self.config = SimpleNamespace(
            vocab_size=vocab_size, bos_token_id=0, eos_token_id=1, max_position_embeddings=1000
        )
        self.tokenizer = tokenizer(tokenizer_file)
        self.script: dict[int, int] = {}
        self.calls: list[int] = []

    def new_cache(self) -> StubCache:
        return StubCache()

    def __call__(self, ids: Tensor, cache: StubCache, *, logits: str) -> Any:
        assert logits == "last"
        self.calls.append(ids.shape[1])
        cache.ids += ids[0].tolist()
        noise = torch.Generator().manual_seed(hash(tuple(cache.ids)) & 0xFFFF)
        row = torch.randn(self.config.vocab_size, generator=noise)
        row[: len(self.tokenizer.special_ids)] = -20.0
        if cache.length in self.script:
            row[self.script[cache.length]] = 50.0
        return SimpleNamespace(logits=row.expand(1, 1, -1))


@pytest.fixture
def stub(tokenizer_file) -> StubModel:
    return StubModel(tokenizer_file)
