"""A model that needs no weights: what comes next is a fixed function of the whole text so far.

Its paged cache remembers tokens where the real one remembers tensors, so what a step finds in its slot and
blocks can be compared with what it should.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fourfold.model.paged_layout import Span
from fourfold.tokenizer import tokenizer

BLOCK = 8


class StubCache:
    """Slots hold all tokens of their sequences, blocks their own tokens."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, ...]] = {}
        self.blocks: dict[int, tuple[int, ...]] = {}
        self.tables: dict[int, list[int]] = {}
        self.call: list[tuple[Span, tuple[int, ...]]] = []
        self.bytes = 0

    def assign(self, slot: int, blocks: list[int]) -> None:
        self.tables[slot] = list(blocks)

    def begin(self, spans: Sequence[Span], ids: list[int]) -> list[tuple[int, ...]]:
        """The whole sequences of a call; what is held of them is compared with its blocks."""
        self.call, at = [], 0
        for span in spans:
            held = self.slots.get(span.slot, ())[: span.past]
            assert len(held) == span.past
            for i, block in enumerate(self.tables[span.slot]):
                own = held[i * BLOCK : (i + 1) * BLOCK]
                assert self.blocks.get(block, ())[: len(own)] == own
            self.call.append((span, held + tuple(ids[at : at + span.new])))
            at += span.new
        return [ids for _, ids in self.call]

    def commit(self, kept: Sequence[tuple[int, int, int]] = (), counted: Sequence[int] | None = None) -> None:
        for place, position, slot in kept:
            self.slots[slot] = self.call[place][1][:position]
        for place, (span, ids) in enumerate(self.call):
            end = None if counted is None else span.past + counted[place]
            self.slots[span.slot] = ids[:end]
            for i, block in enumerate(self.tables[span.slot]):
                if own := ids[i * BLOCK : (i + 1) * BLOCK]:
                    self.blocks[block] = own

    def copy_slot(self, source: int, target: int) -> None:
        self.slots[target] = self.slots[source]

    def copy_block(self, source: int, target: int) -> None:
        self.blocks[target] = self.blocks[source]

    def save(self, slot: int, blocks: Sequence[int]) -> Any:
        return self.slots[slot], [self.blocks[block] for block in blocks]

    def restore(self, saved: Any, slot: int, blocks: Sequence[int]) -> None:
        self.slots[slot] = saved[0]
        self.blocks |= zip(blocks, saved[1], strict=True)


class StubModel:
    """Logits are noise that the ids so far determine.

    script: ids that it says first, whatever the noise, by the length that they follow.
    calls: how many tokens each forward was given.  poison: ids that make a forward fail.
    """

    device = torch.device("cpu")
    tiers = None
    cache_shape = SimpleNamespace(block_tokens=BLOCK, slot_bytes=10, block_bytes=10, staged_bytes=1)

    def __init__(self, tokenizer_file: Any, vocab_size: int = 400) -> None:
        self.config = SimpleNamespace(
            vocab_size=vocab_size,
            bos_token_id=0,
            eos_token_id=1,
            max_position_embeddings=1000,
            sliding_window=0,
            n_routed_experts=0,
        )
        self.tokenizer = tokenizer(tokenizer_file)
        self.script: dict[int, int] = {}
        self.calls: list[int] = []
        self.poison: set[int] = set()
        self.beginnings: list[tuple[int, ...]] = []

    def new_paged_cache(self, **_: int) -> StubCache:
        return StubCache()

    def paged_streams(self, ids: Tensor, spans: Sequence[Span], cache: StubCache, *_: Any) -> Tensor:
        """Numbers of the beginnings that the given tokens end, [1, N, 1, 1]; it has no layers that choose."""
        if self.poison & set(ids.tolist()):
            raise RuntimeError("this chip has melted")
        self.calls.append(len(ids))
        self.beginnings = [
            sequence[: span.past + i + 1]
            for span, sequence in zip(spans, cache.begin(spans, ids.tolist()), strict=True)
            for i in range(span.new)
        ]
        return torch.arange(len(ids))[None, :, None, None]

    def logits(self, streams: Tensor) -> Tensor:
        rows = [self.row(self.beginnings[number]) for number in streams.flatten().tolist()]
        return (torch.stack(rows) if rows else torch.empty(0, self.config.vocab_size))[None]

    def row(self, ids: tuple[int, ...]) -> Tensor:
        noise = torch.Generator().manual_seed(hash(ids) & 0xFFFF)
        row = torch.randn(self.config.vocab_size, generator=noise)
        row[: len(self.tokenizer.special_ids)] = -20.0
        if len(ids) in self.script:
            row[self.script[len(ids)]] = 50.0
        return row


@pytest.fixture
def stub(tokenizer_file) -> StubModel:
    return StubModel(tokenizer_file)
