"""Engines that end before their time: a pause for those who listen, and the same bits after it."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

import fourfold
from fourfold.cli.main import main
from fourfold.config import ModelConfig
from fourfold.engine.config import EngineConfig
from fourfold.engine.request import Request
from fourfold.errors import ConfigError
from fourfold.server import Backend, Process, Server, ServerConfig, create_app, supervisor
from fourfold.server.calls import Log
from fourfold.server.errors import ApiError
from fourfold.worker.wire import Failed, Frames, News, Ready, Submit, Taken, fault, frame, launch
from tests.engine.conftest import StubModel
from tests.server.test_trust import until

NAME = "fourfold-16m"
ROOT = Path(__file__).parents[2]


def shipped() -> tuple[Process, Backend]:
    """The shipped model in a process of its own."""
    folder = fourfold.shipped_model()
    process = Process(launch(folder, EngineConfig(), device="cpu", numerics="fast", threads=1))
    config = ModelConfig.from_file(folder / "config.json")
    return process, Backend(process, fourfold.tokenizer(folder), config, Log(io.StringIO()))


async def ask_all(http: httpx2.AsyncClient) -> list[Any]:
    """Answers of every kind: what each client has in the end."""
    client: Any = openai.AsyncOpenAI(
        api_key="none", base_url="http://server/v1", http_client=http, max_retries=0
    )
    messages: Any = [{"role": "user", "content": "Tell me a story."}]
    seeded: Any = {"model": NAME, "seed": 11, "max_tokens": 48}

    async def streamed() -> list[Any]:
        stream = await client.chat.completions.create(
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
            logprobs=True,
            n=2,
            **seeded,
        )
        found: dict[int, list[Any]] = {0: [], 1: []}
        async for chunk in stream:
            for choice in chunk.choices:
                logprobs = choice.logprobs.content if choice.logprobs else None
                found[choice.index].append((choice.delta.content, choice.finish_reason, logprobs))
            usage = chunk.usage
        assert usage is not None
        return [found, usage.completion_tokens]

    async def whole() -> Any:
        form = {"type": "regex", "regex": "[a-z ]{30,60}"}
        answer = await client.chat.completions.create(
            messages=messages, extra_body={"response_format": form}, **seeded
        )
        return answer.choices[0].message.content

    async def scored() -> Any:
        answer = await client.completions.create(prompt="Once upon a time", echo=True, logprobs=2, **seeded)
        return answer.choices[0].model_dump()

    return await asyncio.gather(streamed(), whole(), scored())


def test_a_killed_engine_is_a_pause(monkeypatch):
    process, backend = shipped()
    server = Server(backend, ServerConfig(name=NAME, keep_alive=0.2))
    app = create_app(server)

    async def work():
        http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app), base_url="http://server", timeout=60
        )
        assert (await http.get("/ready")).json() == {"status": "loading"}
        await backend.start()
        undisturbed = await ask_all(http)
        asked = asyncio.ensure_future(ask_all(http))
        steps = backend.stats().counters.steps
        await until(lambda: backend.stats().counters.steps > steps + 20)
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: backend.state == "restarting")
        assert (await http.get("/ready")).status_code == 503
        # Who comes now waits, too.
        late = asyncio.ensure_future(ask_all(http))
        assert await asked == undisturbed
        assert await late == undisturbed
        health = (await http.get("/health")).json()
        assert health["engine"]["restarts"] == 1 and "SIGKILL" in health["engine"]["last_reason"]
        assert health["engine"]["state"] == "ready" and health["running"] == health["waiting"] == 0
        assert b"engine_restarts_total" in (await http.get("/metrics")).content
        ended = process.pid
        await backend.close()
        with pytest.raises(ProcessLookupError):
            os.kill(ended, 0)

    asyncio.run(work())


ORPHAN = """
import asyncio
from tests.server.test_restart import shipped

async def work():
    process, backend = shipped()
    started = asyncio.ensure_future(backend.start())
    while process.pid is None:
        await asyncio.sleep(0.01)
    print(process.pid, flush=True)
    await started

asyncio.run(work())
"""


def test_an_engine_ends_with_its_server():
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        engine = int(server.stdout.readline())
        server.kill()
    for _ in range(1000):
        try:
            state = Path(f"/proc/{engine}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":  # ended, and nobody here is its parent
            return
        asyncio.run(asyncio.sleep(0.01))
    raise AssertionError("it lives on")


def test_an_engine_that_cannot_start_ends_the_server(capfd):
    assert main(["serve", "--port", "0", "--cache-memory", "1KiB", "--threads", "1"]) == 1
    assert "memory is 1.0 KiB; allowed:" in capfd.readouterr().err


class Fake:
    """A host whose engines do what a test says: each is a socket that it answers."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.killed = 0

    def open(self) -> socket.socket:
        own, theirs = socket.socketpair()
        self.sockets.append(theirs)
        return own

    def ended(self) -> str:
        return "the test has ended it"

    def kill(self) -> None:
        self.killed += 1

    async def opened(self, count: int) -> socket.socket:
        await until(lambda: len(self.sockets) == count)
        return self.sockets[-1]


@pytest.fixture
def fake(monkeypatch, tokenizer_file):
    monkeypatch.setattr(supervisor, "_PAUSES", (0.0,))
    host, model = Fake(), StubModel(tokenizer_file)
    yield host, Backend(host, model.tokenizer, model.config, Log(io.StringIO()))
    for end in host.sockets:
        end.close()


async def submitted(end: socket.socket) -> Submit:
    loop = asyncio.get_running_loop()
    end.setblocking(False)
    frames = Frames()
    while True:
        for message in frames.push(await loop.sock_recv(end, 1 << 16)):
            assert isinstance(message, Submit)
            return message


def test_a_request_that_ends_engines_is_not_tried_for_ever(fake):
    host, backend = fake

    async def work():
        started = asyncio.ensure_future(backend.start())
        (await host.opened(1)).sendall(frame(Ready()))
        await started
        asked = asyncio.ensure_future(backend.submit(Request(prompt=[1, 2], max_tokens=9)))
        first = await submitted(host.sockets[-1])
        host.sockets[-1].sendall(frame(Taken(first.number, None)))
        ticket = await asked
        # A token is progress: the count begins anew.
        row = [first.number, 0, "a", [7]]
        stats = [*[0] * 17, None]
        host.sockets[-1].sendall(frame(News(1, [[first.number, 0, 0.1]], [], [row], [], [], stats)))
        await until(lambda: ticket.ids == [[7]])
        for count in range(2, 5):
            host.sockets[-1].close()
            if count < 5:
                (await host.opened(count)).sendall(frame(Ready()))
            if count < 4:
                again = await submitted(host.sockets[-1])
                assert again.said == [[7]] and again.request["sampling"]["seed"] is not None
        chunks = ticket.chunks()
        assert [chunk.text for chunk in await anext(chunks)] == ["a"]
        with pytest.raises(ApiError, match="3 engines have ended while this request ran"):
            await anext(chunks)
        assert backend.restarts == 3 and backend.stats().waiting == 0
        host.sockets[-1].close()
        await backend.close()

    asyncio.run(work())


def test_when_no_engine_starts_any_more_it_is_told(fake):
    host, backend = fake

    async def work():
        started = asyncio.ensure_future(backend.start())
        (await host.opened(1)).sendall(frame(Ready()))
        await started
        asked = asyncio.ensure_future(backend.submit(Request(prompt=[1, 2], max_tokens=9)))
        await submitted(host.sockets[-1])
        for count in range(2, 2 + supervisor.MOST_STARTS):
            host.sockets[-1].close()
            await host.opened(count)
        host.sockets[-1].sendall(frame(Failed(fault(ConfigError("the disk is gone")))))
        with pytest.raises(ApiError, match="the disk is gone"):
            await asked
        assert backend.state == "failed"
        app = create_app(Server(backend, ServerConfig(name="x")))
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://server")
        assert (await http.get("/health")).status_code == 503
        assert (await http.get("/ready")).json() == {"status": "failed"}
        reply = await http.post("/v1/completions", json={"model": "x", "prompt": "a"})
        assert reply.status_code == 503 and "the disk is gone" in reply.json()["error"]["message"]

    asyncio.run(work())


def test_what_is_no_message_ends_the_engine(fake):
    host, backend = fake

    async def work():
        started = asyncio.ensure_future(backend.start())
        (await host.opened(1)).sendall(frame(Ready()) + b"\0\0\0\2{}")
        await started
        (await host.opened(2)).sendall(frame(Ready()))
        await until(lambda: backend.state == "ready")
        assert backend.restarts == 1
        await backend.close()

    asyncio.run(work())
