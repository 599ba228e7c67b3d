"""Slots and blocks whose rows lie more than 2^31 and 2^32 bytes into their buffers.

The system gives pages when they are first touched, so the buffers take addresses and hardly any memory.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from fourfold.kernels import cpu
from fourfold.model.paged_layout import Span
from tests.model.conftest import TINY, build, tokens

pytestmark = [
    pytest.mark.skipif(sys.maxsize < 1 << 32, reason="needs 64-bit addresses"),
    pytest.mark.skipif(not cpu.available(), reason="the reference copies what it gathers from"),
]


def text_of_two(
    blocks: int, slots: int, window: int, numerics: str
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Logits of a text in the last slot and the last blocks beside one in the first, and those of it alone;
    and the bytes of the largest buffer of one layer."""
    model = build(replace(TINY, sliding_window=window), numerics)
    text, length = tokens(300)[0], 300
    alone = model(text[None], cache=model.new_cache()).logits[0]
    cache = model.new_paged_cache(slots=slots, blocks=blocks, call_tokens=160)
    first, last = [0, 1, 2], [blocks - 1, blocks - 3, blocks // 2 + 7]
    cache.assign(0, first)
    cache.assign(slots - 1, last)
    got = []
    for past, new in ((0, 140), (140, 130), (270, 1), (271, 29)):
        spans = [Span(slots - 1, past, new), Span(0, past // 2, 1)]
        ids = torch.cat([text[past : past + new], text[past // 2 : past // 2 + 1]])
        got.append(model.paged(ids, spans, cache, torch.arange(new)))
        cache.commit([(0, past + new, slots - 2)])
    # What was kept on the way goes on as the sequence itself does, and so does what was saved.
    cache.assign(slots - 2, last)
    saved = cache.save(slots - 2, last)
    cache.copy_block(blocks - 1, blocks - 2)
    cache.restore(saved, slots - 3, [blocks - 2, blocks // 2, 5])
    cache.assign(slots - 3, [blocks - 2, blocks // 2, 5])
    follow = tokens(2, seed=5)[0]
    copies = [
        model.paged(follow, [Span(slot, length, 2)], cache, torch.arange(2))
        for slot in (slots - 1, slots - 2, slots - 3)
    ]
    assert torch.equal(copies[0], copies[1])
    assert torch.equal(copies[0], copies[2])
    streams = [*cache._of_slots.values(), *cache._of_blocks.values()]
    return torch.cat(got), alone, max(data[0].nbytes for data in streams)


@pytest.mark.parametrize("numerics", ["exact", "fast"])
def test_blocks_beyond_two_and_four_gigabytes(numerics: str) -> None:
    got, alone, size = text_of_two(blocks=1_200_000, slots=4, window=9, numerics=numerics)
    assert size > (1 << 32 if numerics == "exact" else 1 << 31)
    assert torch.equal(got, alone)


def test_slots_beyond_two_gigabytes() -> None:
    got, alone, size = text_of_two(blocks=40, slots=70_000, window=300, numerics="exact")
    assert size > 1 << 31
    assert torch.equal(got, alone)
