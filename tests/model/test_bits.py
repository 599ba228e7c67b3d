"""A token's bits are its own: alone or in a batch, at once or cut anywhere, whatever the number of threads.

The native CPU kernels give every sum one order that only the token's own data decide, so here nothing is
compared within a tolerance.  The reference leaves sums to torch, which orders them by the shape of the call:
where the extension is missing, only float32 rounding (test_equivalence.py) and the last test here hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fourfold
from fourfold.kernels import cpu
from fourfold.model.cache import Cache
from fourfold.model.paged_layout import Span
from fourfold.model.transformer import Output, Transformer
from tests.model.conftest import TINY, build, tokens

NUMERICS = ("exact", "deployed", "fast")


def use_threads(count: int) -> None:
    torch.set_num_threads(count)
    cpu.use_threads(count)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads(), int(cpu.describe()["threads"])
    yield
    torch.set_num_threads(before[0])
    cpu.use_threads(before[1])


@dataclass(frozen=True)
class Subject:
    """A model, texts [n, T] and what it says of each of them alone, at once, with one thread."""

    model: Transformer
    texts: Tensor
    alone: tuple[Output, ...]

    def logits(self, text: int, start: int, end: int) -> Tensor:
        return self.alone[text].logits[0, start:end]

    def check(self, got: Output, start: int, texts: list[int]) -> None:
        """One call's rows, which are tokens from `start` on of these texts."""
        end = start + got.logits.shape[1]
        for row, text in enumerate(texts):
            expected = self.alone[text]
            assert torch.equal(got.logits[row], expected.logits[0, start:end])
            if got.mtp_logits is not None:
                assert expected.mtp_logits is not None
                guesses = expected.mtp_logits[0, max(start - 1, 0) : end - 1]
                assert torch.equal(got.mtp_logits[row], guesses)
            for state, wanted in zip(got.hidden_states or (), expected.hidden_states or (), strict=False):
                assert torch.equal(state[row], wanted[0, start:end])


def subject(model: Transformer, length: int, count: int) -> Subject:
    use_threads(1)
    texts = torch.cat([tokens(length, seed=seed) for seed in range(count)])
    alone = [model(row[None], cache=model.new_cache(), mtp=True, hidden_states=True) for row in texts]
    return Subject(model, texts, tuple(alone))


@pytest.fixture(scope="module", params=NUMERICS)
def small(request: pytest.FixtureRequest) -> Subject:
    """Every kind of layer; the indexer leaves entries out from the 16th token on."""
    return subject(build(TINY, request.param), length=130, count=3)


@pytest.fixture(scope="module", params=NUMERICS)
def shipped(request: pytest.FixtureRequest) -> Subject:
    """FP4 experts and FP8 linears; the indexer leaves entries out from the 516th token on."""
    model = fourfold.load(fourfold.shipped_model(), numerics=request.param)
    assert 4 * (model.config.index_topk + 1) == 516
    return subject(model, length=540, count=2)


def feed(own: Subject, cache: Cache, size: int, *, mtp: bool = True) -> None:
    """The next tokens of text 0, checked."""
    at = cache.length
    part = own.texts[:1, at : at + size]
    own.check(own.model(part, cache=cache, mtp=mtp, hidden_states=True), at, [0])


def in_batch(own: Subject, sizes: list[int], batch: int) -> None:
    texts = [row % len(own.texts) for row in range(batch)]
    cache = own.model.new_cache(batch, max_rollback=0)
    for size in sizes:
        at = cache.length
        part = own.texts[texts, at : at + size]
        own.check(own.model(part, cache=cache, mtp=True, hidden_states=True), at, texts)


def in_one_pass(own: Subject, steps: list[list[int]]) -> None:
    """Sequences of different lengths in a paged cache; steps: tokens of each."""
    count, most = len(steps[0]), max(sum(sizes) for sizes in zip(*steps, strict=True))
    calls = [sum(sizes) for sizes in steps]
    blocks = -(-most // 128)
    cache = own.model.new_paged_cache(slots=count, blocks=count * blocks, call_tokens=max(calls))
    past = [0] * count
    for slot in range(count):
        cache.assign(slot, list(range(slot, count * blocks, count)))
    for sizes in steps:
        spans = [Span(slot, past[slot], size) for slot, size in enumerate(sizes)]
        ids = torch.cat([own.texts[s.slot % len(own.texts), s.past : s.past + s.new] for s in spans])
        got = own.model.paged(ids, spans, cache, torch.arange(len(ids))).split(sizes)
        cache.commit()
        for span, logits in zip(spans, got, strict=True):
            past[span.slot] += span.new
            assert torch.equal(logits, own.logits(span.slot % len(own.texts), span.past, past[span.slot]))


if cpu.available():
    assert cpu.native is not None
    native: ModuleType = cpu.native

    def test_token_by_token(small: Subject) -> None:
        """Without a margin every buffer moves and sheds rows many times."""
        cache = small.model.new_cache(max_rollback=0)
        for _ in range(50):
            feed(small, cache, 1)
        assert cache.window.start > 30

    def test_without_a_cache(small: Subject) -> None:
        """Three rows; then two samples packed into one."""
        small.check(small.model(small.texts, mtp=True, hidden_states=True), 0, [0, 1, 2])
        joined = torch.cat([small.texts[:1, :50], small.texts[1:2, :33]], dim=1)
        got = small.model(joined, segments=(torch.arange(83) >= 50).long()[None]).logits[0]
        assert torch.equal(got, torch.cat([small.logits(0, 0, 50), small.logits(1, 0, 33)]))

    @settings(max_examples=6, deadline=None)
    @given(
        calls=st.lists(
            st.tuples(st.integers(1, 40), st.integers(0, 12), st.booleans(), st.integers(1, 2)),
            min_size=2,
            max_size=9,
        ),
        margin=st.sampled_from([0, 5, 256]),
        restart=st.integers(0, 8),
    )
    def test_cut_anywhere_taken_back_and_restarted(
        small: Subject, calls: list[tuple[int, int, bool, int]], margin: int, restart: int
    ) -> None:
        """Each call feeds some tokens with one or two threads; then some are taken back, once all."""
        cache = small.model.new_cache(max_rollback=margin)
        for number, (size, back, mtp, count) in enumerate(calls):
            use_threads(count)
            size = min(size, small.texts.shape[1] - cache.length)
            if size:
                feed(small, cache, size, mtp=mtp)
            cache.rollback(cache.length if number == restart else min(back, cache.max_rollback()))

    @pytest.mark.parametrize("batch", [2, 5, 32])
    def test_in_a_batch(small: Subject, batch: int) -> None:
        use_threads(2)
        in_batch(small, [20, 1, 1, 17], batch)

    @pytest.mark.parametrize("count", [2, 7, 32])
    def test_packed_with_others(small: Subject, count: int) -> None:
        use_threads(2)
        in_one_pass(small, [[1 + 5 * i % 23 for i in range(count)], [1 + i % 3 for i in range(count)]])

    @pytest.mark.parametrize("isa", native.supported_isas())
    def test_on_every_instruction_set(isa: str) -> None:
        before = native.isa()
        assert native.use_isa(isa)
        try:
            for name in NUMERICS:
                own = subject(build(TINY, name), length=40, count=2)
                use_threads(2)
                cache = own.model.new_cache(max_rollback=0)
                for size in (17, 1, 1, 5, 16):
                    feed(own, cache, size)
                in_batch(own, [19, 1], batch=3)
                in_one_pass(own, [[21, 3, 1, 8], [1, 1, 2, 1]])
        finally:
            native.use_isa(before)

    def test_the_shipped_model_in_chunks_and_token_by_token(shipped: Subject) -> None:
        """The window has moved three times when its last chunks choose among entries, one by one."""
        cache = shipped.model.new_cache(max_rollback=0)
        for count, size in ((2, 100), (1, 1), (2, 129), (1, 270), (2, 12), (1, 4), (2, 1), (1, 1), (2, 1)):
            use_threads(count)
            feed(shipped, cache, size, mtp=cache.length % 2 == 0)
        assert cache.length > 516
        assert cache.window.start > 127

    def test_the_shipped_model_after_a_rollback(shipped: Subject) -> None:
        cache = shipped.model.new_cache()
        feed(shipped, cache, 535, mtp=False)
        cache.rollback(30)
        feed(shipped, cache, 20)
        cache.rollback(cache.length)
        feed(shipped, cache, 9)

    @pytest.mark.parametrize(("sizes", "batch"), [([9, 1], 32), ([517, 1, 2], 2)])
    def test_the_shipped_model_in_a_batch(shipped: Subject, sizes: list[int], batch: int) -> None:
        use_threads(2)
        in_batch(shipped, sizes, batch)

    def test_the_shipped_model_packed_with_others(shipped: Subject) -> None:
        use_threads(2)
        in_one_pass(shipped, [[518, 3, 40], [1, 1, 1]])
        in_one_pass(shipped, [[1 + i % 5 for i in range(32)], [1] * 32])


@pytest.mark.parametrize("name", NUMERICS)
def test_the_same_call_has_the_same_bits(name: str) -> None:
    """With the extension or without: this is all that the reference promises of bits."""
    model, ids = build(TINY, name), tokens(30, batch=2)
    once, again = (model(ids, cache=model.new_cache(2), mtp=True) for _ in range(2))
    assert torch.equal(once.logits, again.logits)
    assert once.mtp_logits is not None
    assert again.mtp_logits is not None
    assert torch.equal(once.mtp_logits, again.mtp_logits)
