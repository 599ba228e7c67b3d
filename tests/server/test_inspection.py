"""`/fourfold/inspect`: what it answers, whom it lets in, and that others go first."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Iterator
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

import fourfold
from fourfold.engine.config import EngineConfig
from fourfold.engine.engine import Engine
from fourfold.engine.request import Request
from fourfold.server import Backend, Server, ServerConfig, Thread, create_app
from fourfold.server.calls import Log
from fourfold.server.inspection import MOST_TOKENS, _spans

KEY = "a-first-key"


@pytest.fixture(scope="module")
def engine(tiny_folder) -> Iterator[Engine]:
    config = EngineConfig(max_running=4, step_tokens=64, memory="20MiB")
    with Engine(fourfold.load(tiny_folder), config) as made:
        yield made


@pytest.fixture
def server(engine) -> Server:
    return made(engine, keys=(KEY, "another-key"))


def made(engine: Engine, **config: Any) -> Server:
    backend = Backend(Thread(engine), engine.tokenizer, engine.model.config, Log(stream=io.StringIO()))
    return Server(backend, ServerConfig(name="tiny", **config))


def inspect(server: Server, key: str = KEY, **body: Any) -> Any:
    async def ask():
        transport = httpx2.ASGITransport(app=create_app(server))
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with httpx2.AsyncClient(transport=transport, base_url="http://server") as http:
            return await http.post("/fourfold/inspect", json=body, headers=headers)

    return asyncio.run(ask())


TOKENS = [0, *range(20, 119)]


def test_an_inspection_in_the_words_of_the_api(server, engine):
    found = inspect(server, tokens=TOKENS, position=70).json()
    config = engine.model.config
    assert found["object"] == "fourfold.inspection" and found["position"] == 70
    assert "".join(found["token_strs"][1:]) == engine.tokenizer.decode(TOKENS[1:])
    assert (found["n_routed_experts"], found["sliding_window"]) == (8, 16)
    answer = engine.submit(Request(prompt=TOKENS[:70], max_tokens=1, inspect=True))
    assert list(engine.chunks(answer))
    layers = answer.layers
    for told, layer in zip(found["layers"], layers, strict=True):
        assert told["experts"] == list(layer.experts)
        assert told["weights"] == pytest.approx(layer.weights, abs=1e-6)
        assert {name: told[name] for name in ("kind", "ratio", "hashed", "visible")} == {
            name: value
            for name, value in asdict(layer).items()
            if name in told and name not in ("experts", "weights")
        }
    csa = [told for told in found["layers"] if told["kind"] == "csa"]
    assert csa and all(told["chosen"] == config.index_topk < told["visible"] for told in csa)
    for told in csa:
        assert sum(end - start for start, end in told["spans"]) == told["chosen"] * told["ratio"]
        assert all(0 <= start < end <= 70 for start, end in told["spans"])
    assert all(told["spans"] is None for told in found["layers"] if told["kind"] != "csa")


def test_neighbouring_entries_are_one_span():
    assert [*_spans((0, 1, 4, 6, 7), 4)] == [(0, 8), (16, 20), (24, 32)]
    assert [*_spans((), 4)] == []


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"tokens": TOKENS, "position": 100}, 400, "1 to 99"),
        ({"tokens": TOKENS, "position": 0}, 422, "position"),
        ({"tokens": [5], "position": 1}, 422, "tokens"),
        ({"tokens": [5] * (MOST_TOKENS + 1), "position": 1}, 422, "tokens"),
        ({"tokens": [5, 400, 3], "position": 2}, 400, "not in the vocabulary"),
        ({"tokens": [5] * 600, "position": 599}, 400, "shorten the prompt"),
        ({"tokens": TOKENS, "position": 3, "layer": 2}, 400, "layer is not supported"),
        ({"tokens": TOKENS}, 422, "position is missing"),
        ({"tokens": TOKENS, "position": 3, "model": "another"}, 404, "no model 'another'"),
    ],
)
def test_what_is_refused(server, body, status, told):
    response = inspect(server, **body)
    assert response.status_code == status and told in response.json()["error"]["message"]


def test_it_takes_the_key_and_counts_against_its_limits(engine):
    server = made(engine, keys=(KEY,), key_rate=1)
    body = {"tokens": TOKENS, "position": 5}
    assert inspect(server, key="", **body).status_code == 401
    assert inspect(server, **body).status_code == 200
    assert inspect(server, **body).status_code == 429


def test_one_key_learns_nothing_of_what_another_has_cached(server, engine):
    tokens = [0, *range(150, 230)]
    body = {"tokens": tokens, "position": 80}
    prompt = tokens[:80]

    def cached(key: str) -> int:
        before = engine.stats().counters.cached_tokens
        assert inspect(server, key=key, **body).status_code == 200
        return engine.stats().counters.cached_tokens - before

    assert cached(KEY) == cached(KEY) == 0
    # What the server calls a key: the beginning of its hash.
    scope = hashlib.sha256(KEY.encode()).hexdigest()[:12]
    list(engine.stream(Request(prompt=prompt, max_tokens=1, scope=scope)))
    assert cached("another-key") == 0
    assert cached(KEY) == 79


def test_one_at_a_time_and_none_where_no_work_is_taken(server, monkeypatch):
    body = {"tokens": TOKENS, "position": 5}
    server.inspecting = True
    busy = inspect(server, **body)
    server.inspecting = False
    assert (busy.status_code, busy.json()["error"]["code"]) == (503, "inspection_running")
    assert busy.headers["retry-after"] == "1"
    assert inspect(server, **body).status_code == 200
    server.draining = True
    assert "shutting down" in inspect(server, **body).json()["error"]["message"]
    server.draining = False
    monkeypatch.setattr(server.engine, "stats", lambda: SimpleNamespace(waiting=10**6))
    assert "overloaded" in inspect(server, **body).json()["error"]["message"]
    assert not server.inspecting
