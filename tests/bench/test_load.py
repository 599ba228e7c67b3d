"""The load bench: what it counts, and what it calls an error."""

from __future__ import annotations

import asyncio
import json
import os
import time

import pytest

from bench import load
from bench.load_client import PATHS, Ask, Mix, Tally, drive
from tests.server.conftest import NAME, ScriptedModel, Served, listening

TEXTS = ["one two three four five six seven eight nine ten " * 1000]


@pytest.fixture
def url(tokenizer_file):
    """A server on a thread, whose model never comes to an end by itself."""
    served = Served(ScriptedModel(tokenizer_file), waiting=64)
    with listening(served) as address:
        yield address
    served.engine.close()


def test_all_protocols_are_spoken_and_counted(url, monkeypatch):
    monkeypatch.setattr(load, "stories", lambda: TEXTS)
    found = asyncio.run(load.load(url, NAME, streams=6, seconds=2, pid=os.getpid(), seed=1))
    tally, samples = found
    assert not tally.errors
    assert set(tally.by_protocol) == set(PATHS)
    assert sum(tally.by_protocol.values()) == len(tally.whole)
    assert len(tally.first) == len(tally.whole) + tally.left
    assert tally.tokens > 16 * len(tally.whole) and samples[0][1] > 50 << 20
    report = load.report(tally, samples, 2.0, 6)
    assert report["first_token_ms"]["p50"] <= report["first_token_ms"]["p99"]
    assert "0 errors" in load.table(report)


@pytest.mark.parametrize(
    ("says", "word"),
    [
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n{busy}", "status 503"),
        ('data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n', "breaks off"),
        ('data: {"error":{"message":"melted"}}\n\n', "melted"),
        ("data: {broken}\n\n", "JSONDecodeError"),
        ("data: [DONE]\n\ndata: [DONE]\n\n", "follows the last one"),
        (
            'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"completion_tokens":3,'
            '"prompt_tokens":1}}\n\ndata: [DONE]\n\n',
            "3 tokens came of 5",
        ),
    ],
)
def test_what_is_no_whole_answer_is_an_error(says, word):
    class Chat(Mix):
        def next(self) -> Ask:
            return Ask("chat", "hello", 5)

    async def work() -> list[str]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            body = f"{len(says):x}\r\n{says}\r\n0\r\n\r\n"
            head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
            writer.write((says if says.startswith("HTTP") else head + body).encode())
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            tally = Tally()
            port = server.sockets[0].getsockname()[1]
            await drive("127.0.0.1", port, "x", Chat(TEXTS, 1), tally, until=time.monotonic() + 0.01)
        return tally.errors

    (error,) = asyncio.run(work())
    assert word in error


def test_the_mix_is_the_same_for_a_seed_and_begins_alike_sometimes():
    first, again = (Mix(TEXTS, 3) for _ in range(2))
    asks = [first.next() for _ in range(200)]
    assert asks == [again.next() for _ in range(200)]
    assert {ask.protocol for ask in asks} == set(PATHS) and any(ask.leaves for ask in asks)
    assert min(len(ask.text) for ask in asks) < 100 and max(len(ask.text) for ask in asks) > 2000
    assert json.dumps(asks[0].body("m"))


@pytest.mark.parametrize(("end", "within"), [(400, True), (460, False)])
def test_memory_that_grows_is_told(end, within):
    samples = [(float(second), (400 if second < 30 else end) << 20) for second in range(40)]
    found = load.growth(samples)
    assert found["within"] == within and found["growth_bytes"] == (end - 400) << 20


def test_a_process_and_its_children():
    import subprocess

    with subprocess.Popen(["sleep", "20"]) as child:
        assert child.pid in load.processes(os.getpid())
        assert load.memory(os.getpid()) > load.memory(child.pid) > 0
        child.kill()
