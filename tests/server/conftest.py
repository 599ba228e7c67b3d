"""A server in this process, over a model that says what a test wants, and the real clients in front of it."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import httpx2
import openai
import pytest
import uvicorn
from torch import Tensor

from fourfold.engine.config import EngineConfig
from fourfold.engine.engine import Engine
from fourfold.server import Backend, Server, ServerConfig, Thread, create_app
from fourfold.server.calls import Log
from fourfold.server.run import address, bound
from tests.engine.conftest import StubModel

NAME = "stub"


class ScriptedModel(StubModel):
    """Says `text` and ends.  What it has said of it is found at the end of the ids so far."""

    def __init__(self, tokenizer_file: Any) -> None:
        super().__init__(tokenizer_file)
        self.config.max_position_embeddings = 6000
        self._script: list[int] | None = None

    def say(self, text: str | None) -> None:
        """None: noise, without an end."""
        self._script = None if text is None else self.tokenizer.encode(text, special=True)

    def row(self, ids: tuple[int, ...]) -> Tensor:
        row = super().row(ids)
        if self._script is not None:
            script = self._script
            said = next(n for n in range(len(script), -1, -1) if n == 0 or list(ids[-n:]) == script[:n])
            row[script[said] if said < len(script) else self.config.eos_token_id] = 50.0
        return row


class Served:
    """One server: its app, its log, and a transport for clients that never leave the process."""

    def __init__(self, model: ScriptedModel, **config: Any) -> None:
        self.model = model
        self.engine = Engine(
            model, EngineConfig(max_running=8, snapshots=8, step_tokens=1024, memory=100_000)
        )
        self.log = io.StringIO()
        settings = ServerConfig(**{"name": NAME, **config})
        backend = Backend(Thread(self.engine), model.tokenizer, model.config, Log(stream=self.log))
        self.server = Server(backend, settings)
        self.app = create_app(self.server)

    def http(self, **more: Any) -> httpx2.AsyncClient:
        transport = httpx2.ASGITransport(app=self.app)
        return httpx2.AsyncClient(transport=transport, base_url="http://server", **more)

    def openai(self, key: str = "none", **more: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=key, base_url="http://server/v1", http_client=self.http(), max_retries=0, **more
        )

    def anthropic(self, key: str = "none", **more: Any) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(
            api_key=key, base_url="http://server", http_client=self.http(), max_retries=0, **more
        )

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def idle(self) -> bool:
        stats = self.engine.stats()
        return stats.running == stats.waiting == 0


@contextmanager
def listening(served: Served) -> Iterator[str]:
    """Its address, at which a thread serves it."""
    with bound("127.0.0.1", 0) as socket:
        server = uvicorn.Server(uvicorn.Config(served.app, lifespan="off", log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield address(socket)
        server.should_exit = True
        thread.join()


@pytest.fixture
def serve(tokenizer_file) -> Iterator[Callable[..., Served]]:
    """serve("what the model says", limit=…) -> Served."""
    made: list[Served] = []

    def make(text: str | None = "Hello.", **config: Any) -> Served:
        model = ScriptedModel(tokenizer_file)
        model.say(text)
        made.append(Served(model, **config))
        return made[-1]

    yield make
    for served in made:
        served.engine.close()
