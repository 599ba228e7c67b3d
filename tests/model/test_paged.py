"""Sequences in a paged cache compute the bits of sequences alone, wherever their blocks lie.

Where the native kernels are missing, within float32 rounding: the reference sums what it gathers by shape.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourfold.errors import CacheError, ConfigError, RequestError
from fourfold.kernels import cpu
from fourfold.model.numerics import Kv, numerics
from fourfold.model.paged import PagedCache
from fourfold.model.paged_fixed import FixedStep
from fourfold.model.paged_layout import Span
from fourfold.model.paged_shape import Shape
from fourfold.model.transformer import Transformer
from fourfold.weights.inspect import kv_bytes
from fourfold.weights.synth import preset
from tests.model.conftest import TINY, build, tokens

LENGTH = 300
SLOTS, BLOCKS, CALL = 6, 16, 120


def assert_same(got: Tensor, expected: Tensor) -> None:
    if cpu.available():
        assert torch.equal(got, expected)
    else:
        assert float((got - expected).abs().max() / expected.std()) < 1e-4


class Reader:
    """Texts, what the model says of each alone, and a paged cache that reads several at once."""

    def __init__(self, model: Transformer, shuffle: int = 0) -> None:
        self.model = model
        self.texts = tokens(LENGTH, batch=3)
        self.alone = [model(row[None], cache=model.new_cache()).logits[0] for row in self.texts]
        self.begin(shuffle)

    def begin(self, shuffle: int) -> None:
        self.cache: PagedCache = self.model.new_paged_cache(slots=SLOTS, blocks=BLOCKS, call_tokens=CALL)
        generator = torch.Generator().manual_seed(shuffle)
        self.free: list[int] = torch.randperm(BLOCKS, generator=generator).tolist()
        self.blocks: dict[int, list[int]] = {}
        self.past: dict[int, int] = {}

    def step(
        self,
        parts: dict[int, int],
        kept: tuple[tuple[int, int, int], ...] = (),
        wrong: dict[int, int] | None = None,
        fixed: FixedStep | None = None,
    ) -> None:
        """parts: slot -> new tokens; slot i reads text i mod 3.  Everything said is checked.

        wrong: so many tokens more, of something else, which are taken back.  fixed: what the call is made
        with, of one token of each slot.
        """
        spans, ids = [], []
        for slot, new in parts.items():
            past, more = self.past.get(slot, 0), (wrong or {}).get(slot, 0)
            spans.append(Span(slot, past, new + more))
            ids += [self.texts[slot % 3][past : past + new], tokens(more, seed=past)[0]]
            own = self.blocks.setdefault(slot, [])
            while len(own) * 128 < past + new + more:
                own.append(self.free.pop())
            self.cache.assign(slot, own)
        all_ids = torch.cat(ids)
        if fixed is None:
            got = self.model.paged(all_ids, spans, self.cache, torch.arange(len(all_ids)))
        else:
            self.model.fill(fixed, all_ids, spans, self.cache)
            got = self.model.paged_fixed(fixed, self.cache)[1][: len(all_ids)]
        self.cache.commit(kept, list(parts.values()) if wrong else None)
        for span, part in zip(spans, got.split([s.new for s in spans]), strict=True):
            new = parts[span.slot]
            assert_same(part[:new], self.alone[span.slot % 3][span.past : span.past + new])
            self.past[span.slot] = span.past + new


@pytest.fixture(scope="module", params=["exact", "deployed", "fast", "deployed published", "fast published"])
def reader(request: pytest.FixtureRequest) -> Reader:
    numerics, _, kv = request.param.partition(" ")
    return Reader(build(TINY, numerics, kv=kv or None))


@settings(max_examples=8, deadline=None)
@given(
    steps=st.lists(
        st.dictionaries(st.integers(0, 2), st.sampled_from([1, 1, 2, 5, 40]), min_size=1),
        min_size=1,
        max_size=12,
    ),
    shuffle=st.integers(0, 9),
)
def test_packed_in_any_way(reader: Reader, steps: list[dict[int, int]], shuffle: int) -> None:
    reader.begin(shuffle)
    for step in steps:
        reader.step({slot: min(new, LENGTH - reader.past.get(slot, 0)) or 1 for slot, new in step.items()})


def test_across_blocks_that_lie_apart(reader: Reader) -> None:
    reader.begin(3)
    for _ in range(6):
        reader.step({0: 45, 1: 30, 2: 13})
    reader.step({0: 1, 1: 1, 2: 1})


@settings(max_examples=8, deadline=None)
@given(
    steps=st.lists(
        st.dictionaries(
            st.integers(0, 2), st.tuples(st.sampled_from([1, 1, 2, 7, 31]), st.integers(0, 9)), min_size=1
        ),
        min_size=1,
        max_size=14,
    )
)
def test_tokens_that_are_taken_back_leave_nothing(
    reader: Reader, steps: list[dict[int, tuple[int, int]]]
) -> None:
    """Wrong ones complete entries of every kind and pass the windows' ends."""
    reader.begin(4)
    for step in steps:
        right = {slot: min(new, LENGTH - reader.past.get(slot, 0)) for slot, (new, _) in step.items()}
        right = {slot: new for slot, new in right.items() if new}
        if right:
            reader.step(right, wrong={slot: step[slot][1] for slot in right})


def test_a_state_from_within_a_call_whose_last_tokens_are_taken_back(reader: Reader) -> None:
    reader.begin(1)
    reader.step({0: 60, 1: 20})
    reader.step({1: 3, 0: 6}, kept=((1, 64, 3),), wrong={0: 8})
    own = [reader.free.pop()]
    reader.cache.copy_block(reader.blocks[0][0], own[0])
    reader.blocks[3], reader.past[3] = own, 64
    for new in (1, 2, 25):
        reader.step({3: new, 0: 5}, wrong={3: 3})


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_steps_of_fixed_shape(reader: Reader, batch: int) -> None:
    """Of as many sequences as there are places, and of fewer; calls of other shapes come in between."""
    reader.begin(batch)
    fixed = reader.cache.fixed_step(batch, 200)
    assert fixed.context == 256
    addresses = {name: fixed.part(name).data_ptr() for name in ("ids", "window", "table")}
    reader.step({1: 60, 2: 7})
    for turn in range(75):
        slots = [(turn + i) % 3 for i in range(min(batch, 3) - turn % 2)] or [turn % 3]
        reader.step(dict.fromkeys(slots, 1), fixed=fixed)
        if turn % 20 == 19:
            reader.step({0: 1, 1: 7})
    assert addresses == {name: fixed.part(name).data_ptr() for name in addresses}


def test_a_state_from_a_step_of_fixed_shape(reader: Reader) -> None:
    reader.begin(0)
    fixed = reader.cache.fixed_step(4, 128)
    reader.step({0: 61, 1: 20})
    reader.step({1: 1, 0: 1}, kept=((1, 62, 3),), fixed=fixed)
    own = [reader.free.pop()]
    reader.cache.copy_block(reader.blocks[0][0], own[0])
    reader.blocks[3], reader.past[3] = own, 62
    for _ in range(30):
        reader.step({3: 1, 1: 1, 0: 1}, fixed=fixed)


@pytest.mark.parametrize("position", [0, 1, 8, 17, 63, 64, 65, 80])
def test_a_state_from_within_a_call(reader: Reader, position: int) -> None:
    """Tokens 0 to 59, then 60 to 79 and a copy of the state in their midst or before their end."""
    reader.begin(1)
    reader.step({0: 60, 1: 20})
    position = max(position, 61)
    reader.step({1: 3, 0: 20}, kept=((1, position, 3),))
    own = [reader.free.pop()]
    reader.cache.copy_block(reader.blocks[0][0], own[0])
    reader.step({0: 30})
    reader.blocks[3], reader.past[3] = own, position
    for new in (1, 2, 25):
        reader.step({3: new, 1: 1})


def test_saved_and_brought_back_elsewhere(reader: Reader) -> None:
    reader.begin(2)
    reader.step({0: 100, 1: 9})
    reader.step({0: 33})
    saved = reader.cache.save(0, reader.blocks[0])
    reader.free += reader.blocks.pop(0)[::-1]
    del reader.past[0]
    reader.step({0: 50, 2: 50})  # others use the place
    blocks = [reader.free.pop(), reader.free.pop()]
    reader.cache.restore(saved, 3, blocks)
    reader.blocks[3], reader.past[3] = blocks, 133
    for new in (1, 7, 30):
        reader.step({3: new})


def test_a_call_that_fails_changes_nothing(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    reader.begin(0)
    reader.step({0: 70})
    with monkeypatch.context() as broken:
        broken.setattr(reader.model.layers[4], "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reader.step({0: 90})
    reader.step({0: 25})
    reader.step({0: 1})


def test_only_the_logits_that_are_wanted(reader: Reader) -> None:
    reader.begin(0)
    reader.cache.assign(0, [4])
    ids = reader.texts[0][:30]
    got = reader.model.paged(ids, [Span(0, 0, 30)], reader.cache, torch.tensor([29]))
    assert_same(got, reader.alone[0][29:30])
    assert (
        reader.model.paged(ids, [Span(0, 0, 30)], reader.cache, torch.tensor([], dtype=torch.int64)).shape[0]
        == 0
    )


def test_a_window_of_one_token() -> None:
    own = Reader(build(replace(TINY, sliding_window=1)))
    own.step({0: 20, 1: 3})
    own.step({0: 1, 1: 1})
    own.step({0: 1, 1: 1}, fixed=own.cache.fixed_step(3, 100))


def test_what_is_refused() -> None:
    model = build(TINY)
    cache = model.new_paged_cache(slots=1, blocks=1, call_tokens=8)
    wanted = torch.tensor([0])
    with pytest.raises(RequestError, match="ids range from 97"):
        model.paged(torch.tensor([97]), [Span(0, 0, 1)], cache, wanted)
    with pytest.raises(RequestError, match="exceed max_position_embeddings"):
        model.paged(torch.tensor([3]), [Span(0, 1024, 1)], cache, wanted)
    step = cache.fixed_step(1, 4096)
    assert step.context == 1024
    with pytest.raises(RequestError, match="ids range from 97"):
        model.fill(step, torch.tensor([97]), [Span(0, 0, 1)], cache)
    with pytest.raises(RequestError, match="exceed max_position_embeddings"):
        model.fill(step, torch.tensor([3]), [Span(0, 1024, 1)], cache)
    with pytest.raises(CacheError, match="another model"):
        build(TINY).paged(torch.tensor([3]), [Span(0, 0, 1)], cache, wanted)


def test_bytes_are_as_the_shape_says() -> None:
    cache = build(TINY).new_paged_cache(slots=3, blocks=5, call_tokens=7)
    shape = cache.shape
    # The window's 8 rows of 5 layers, pending inputs of 2 CSA layers with their indexers and of 2 HCA layers.
    assert shape.slot_bytes == 4 * (5 * 8 * 32 + 2 * 8 * (4 * 32 + 4 * 16) + 2 * 16 * 2 * 32)
    assert shape.block_bytes == 4 * (2 * 32 * (32 + 16) + 2 * 8 * 32)
    assert cache.bytes == 4 * shape.slot_bytes + 5 * shape.block_bytes + 7 * shape.staged_bytes


@pytest.mark.parametrize("name", ["flash", "pro"])
@pytest.mark.parametrize("kv", ["bf16", "published"])
def test_a_block_has_the_bytes_that_plan_says(name: str, kv: Kv) -> None:
    config = preset(name)
    shape = Shape.of(config, numerics("deployed", kv))
    planned = [kv_bytes(config, tokens, published=kv == "published") for tokens in (1024, 1024 + 128)]
    assert shape.block_bytes == planned[1] - planned[0]


def test_exact_numerics_keep_float32() -> None:
    with pytest.raises(ConfigError, match=r"kv is 'published' with numerics 'exact'; allowed: none"):
        numerics("exact", "published")
    with pytest.raises(ConfigError, match=r"kv is 'int8' .* allowed: published, bf16"):
        numerics("fast", cast(Kv, "int8"))
