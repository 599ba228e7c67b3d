"""What an inspection says the model chose is what transformers' own V4 chooses from the same tokens.

It is an independent implementation: its router's and its indexer's outputs are taken where they arise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fourfold.bench.peers_transformers import build as build_transformers
from fourfold.engine.config import EngineConfig
from fourfold.engine.engine import Engine
from fourfold.engine.inspection import LayerChoice
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from fourfold.errors import RequestError
from fourfold.model.transformer import Transformer
from fourfold.tokenizer import tokenizer
from tests.model.conftest import TINY, build, tokens
from tests.model.test_transformers import official

# With many index heads no two entries score the same: such ties are arbitrary in transformers.
CONFIG = replace(TINY, index_n_heads=32, vocab_size=400)
LENGTH = 90


@pytest.fixture(scope="module")
def model() -> Transformer:
    return build(CONFIG)


@pytest.fixture
def engine(model, tokenizer_file):
    config = EngineConfig(max_running=4, snapshots=4, step_tokens=32, memory="20MiB")
    with Engine(model, config, tokenizer=tokenizer(tokenizer_file)) as made:
        yield made


def inspect(engine: Engine, ids: Sequence[int], scope: str = "") -> tuple[LayerChoice, ...]:
    answer = engine.submit(Request(prompt=ids, max_tokens=1, inspect=True, priority=-1, scope=scope))
    assert len([*engine.chunks(answer)]) == 1
    return answer.layers


def transformers_choices(model: Transformer, ids: Tensor) -> tuple[list[Any], list[Tensor]]:
    """Of every layer, (weights, indices) of the router; of every CSA layer, the indexer's entries."""
    other = build_transformers(CONFIG, official(model), torch.float32)
    routed: list[Any] = []
    indexed: list[Tensor] = []
    keep: dict[str, Callable[..., None]] = {
        "Router": lambda module, args, found: routed.append(found[1:]),
        "Indexer": lambda module, args, found: indexed.append(found),
    }
    for module in other.modules():
        for name, hook in keep.items():
            if type(module).__name__.endswith(name):
                module.register_forward_hook(hook)
    with torch.no_grad():
        other(ids, use_cache=False)
    return routed, indexed


def test_the_choices_are_those_of_transformers(model, engine):
    ids = tokens(LENGTH)
    routed, indexed = transformers_choices(model, ids)
    # Others run beside it: their tokens are in the same steps.
    beside = [
        engine.submit(Request(prompt=tokens(60, seed=seed)[0], max_tokens=30, ignore_eos=True))
        for seed in (1, 2)
    ]
    for position in (LENGTH - 1, 50, 17, 3):
        layers = inspect(engine, ids[0, : position + 1].tolist())
        csa = iter(indexed)
        assert [layer.kind for layer in layers] == list(CONFIG.layer_kinds)
        assert [layer.hashed for layer in layers] == list(CONFIG.hash_layers)
        for layer, (weights, indices) in zip(layers, routed, strict=True):
            expected = dict(zip(indices[position].tolist(), weights[position].tolist(), strict=True))
            assert dict(zip(layer.experts, layer.weights, strict=True)) == pytest.approx(expected, rel=1e-4)
            assert list(layer.weights) == sorted(layer.weights, reverse=True)
            if layer.kind == "csa":
                chosen = [entry for entry in next(csa)[0, position].tolist() if entry >= 0]
                seen = range(layer.visible) if layer.entries is None else layer.entries
                assert sorted(chosen) == list(seen)
            assert layer.visible == ((position + 1) // layer.ratio if layer.ratio else 0)
        some_left_out = any(layer.entries is not None for layer in layers)
        assert some_left_out == (position // 4 > CONFIG.index_topk)
    for answer in beside:
        assert len([*engine.chunks(answer)]) == 30


def test_an_inspection_changes_nothing_for_others(model, engine):
    asked = Request(prompt=tokens(40, seed=3)[0], max_tokens=20, sampling=Sampling(seed=7))
    alone = [chunk.ids for chunk in engine.stream(asked)]
    answer = engine.submit(asked)
    chunks = engine.chunks(answer)
    said = [next(chunks).ids]
    for _ in range(3):
        assert len(inspect(engine, tokens(70, seed=4)[0].tolist())) == 5
        said.append(next(chunks).ids)
    assert said + [chunk.ids for chunk in chunks] == alone


def test_the_choices_are_the_same_from_a_cached_beginning(engine):
    ids = tokens(80, seed=5)[0].tolist()
    first: tuple[LayerChoice, ...] = inspect(engine, ids)
    cold = engine.stats()
    assert cold.counters.cached_tokens == cold.snapshots == 0, "it is kept for others"
    assert cold.blocks_free == cold.blocks
    list(engine.stream(Request(prompt=ids, max_tokens=1)))
    before = engine.stats()
    assert before.counters.cached_tokens == 0 < before.snapshots
    assert inspect(engine, ids) == first
    after = engine.stats()
    assert after.counters.cached_tokens == 79
    assert after.counters.computed_tokens - before.counters.computed_tokens == 1
    assert after.snapshots == before.snapshots
    inspect(engine, ids, "of another key")
    assert engine.stats().counters.cached_tokens == 79


def test_nobody_waits_for_what_an_inspection_computes(engine):
    """A request that begins alike waits for one that leaves a state to begin from; this one leaves none."""
    ids = tokens(90, seed=6)[0].tolist()
    inspection = threading.Thread(target=inspect, args=(engine, ids))
    inspection.start()
    said = list(engine.stream(Request(prompt=ids, max_tokens=5, ignore_eos=True)))
    inspection.join()
    assert len(said) == 5


def test_only_one_token_is_inspected():
    for more in ({"max_tokens": 2}, {"max_tokens": None}, {"max_tokens": 1, "n": 2}):
        with pytest.raises(RequestError, match="inspect is True"):
            Request(prompt="a", inspect=True, **more)
