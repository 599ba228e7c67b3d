"""Messages survive the way through bytes, however these are cut; what is no message is noticed."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold import Constraint, EngineConfig, Request, Sampling
from fourfold.engine.answer import Chunk
from fourfold.engine.engine import EngineStats
from fourfold.engine.inspection import LayerChoice
from fourfold.engine.limits import Counters
from fourfold.engine.logprobs import TokenLogprob
from fourfold.errors import RequestError
from fourfold.model.experts import TierStats
from fourfold.worker import wire

LOGPROBS = (
    TokenLogprob(5, -0.1234567890123456789, ((5, -0.1), (6, -math.inf))),
    TokenLogprob(6, -math.inf),
)
MESSAGES = [
    wire.Submit(3, Request(prompt=[1, 2], constraint=Constraint.regex("a+")).to_json(), [[1], []]),
    wire.Cancel(3),
    wire.Taken(4, wire.fault(RequestError("no, “so”"))),
    wire.News(9, [[3, 16, 0.5]], [], [[3, 0, "é\ud800", [7]]], [], [[3, None]], [1] * 17),
]


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 40), min_size=1))
def test_however_bytes_are_cut_the_messages_are_the_same(cuts):
    data, frames = b"".join(map(wire.frame, MESSAGES)), wire.Frames()
    found: list[Any] = []
    at = 0
    while at < len(data):
        for cut in cuts:
            found += frames.push(data[at : at + cut])
            at += cut
    assert [type(one) for one in found] == [type(one) for one in MESSAGES]
    assert [json.loads(json.dumps(one)) for one in found] == [json.loads(json.dumps(one)) for one in MESSAGES]


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", wire.MOST_BYTES + 1),
        b"\0\0\0\x02{}",
        b'\0\0\0\x07["Who"]',
        b"\0\0\0\x03\xff\xff\xff",
    ],
)
def test_what_is_no_message(data):
    with pytest.raises(wire.WireError):
        list(wire.Frames().push(data))


def test_what_is_too_long_is_not_sent(monkeypatch):
    monkeypatch.setattr(wire, "MOST_BYTES", 20)
    with pytest.raises(wire.WireError, match="allowed: 20"):
        wire.frame(wire.Submit(1, {"prompt": [1] * 20}, []))


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk("a", (1,)),
        Chunk("", (), "stop", 7, 2),
        Chunk("b", (3,), "length", None, 1, LOGPROBS),
        Chunk("c", (3,), None, None, 0, LOGPROBS[:1]),
    ],
)
def test_chunks(chunk):
    row = json.loads(json.dumps(wire.chunk_row(8, chunk)))
    assert row[0] == 8 and wire.chunk_of(row) == chunk


def test_requests_statistics_and_errors():
    request = Request(
        prompt=[1, 2, 3],
        n=2,
        stop=["x"],
        stop_tokens=[4],
        sampling=Sampling(temperature=0.1, seed=3, logit_bias={7: -1.5}),
        constraint=Constraint.json({"type": "object"}).after_thinking(),
        logprobs=2,
        scope="k",
    )
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request
    stats = EngineStats(1, 2, 3, 4, 5, 6, 7, 8, Counters(9, 10, accepted=11))
    assert wire.stats_of(wire.stats_row(stats)) == stats
    tiers = TierStats(30, 100, hits=5, stall_seconds=0.5)
    streamed = replace(stats, tiers=tiers)
    assert wire.stats_of(json.loads(json.dumps(wire.stats_row(streamed)))) == streamed
    error = wire.error_of(wire.fault(RequestError("not so")))
    assert type(error) is RequestError and str(error) == "not so"
    error = wire.error_of(wire.fault(ZeroDivisionError("by zero"), ["here"]))
    assert isinstance(error, wire.EngineFault) and error.told == ("ZeroDivisionError", "by zero", ["here"])


def test_choices_of_layers():
    layers = (
        LayerChoice("swa", 0, (3, 1), (0.9, 0.6), True, 0, None),
        LayerChoice("csa", 4, (0, 2), (1.0, 0.5), False, 12, (0, 5, 11)),
    )
    assert wire.layers_of(json.loads(json.dumps(wire.layer_rows(layers)))) == layers


def test_settings_cross_as_json(tmp_path):
    config = EngineConfig(max_running=3, cache_dir=tmp_path, draft="ngram")
    sent = wire.launch(tmp_path, config, device="cpu", expert_copy=tmp_path / "x", ram=None)
    got: Any
    (got,) = wire.Frames().push(wire.frame(sent))
    assert got.model == str(tmp_path) and got.loading["expert_copy"] == str(tmp_path / "x")
    assert EngineConfig(**got.engine) == EngineConfig(max_running=3, cache_dir=str(tmp_path), draft="ngram")
