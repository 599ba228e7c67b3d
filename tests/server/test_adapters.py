"""Adapters over HTTP: listed, chosen by the model's name in every protocol, and no other name taken."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import httpx2

import fourfold
from fourfold import Engine, EngineConfig
from fourfold.server import Backend, Server, ServerConfig, Thread, create_app
from fourfold.server.calls import Log
from tests.adapters import random_adapter

ASK = [{"role": "user", "content": "Tell me."}]
BODIES = {
    "/v1/completions": {"prompt": "Once", "max_tokens": 4, "temperature": 0},
    "/v1/chat/completions": {"messages": ASK, "max_tokens": 1},
    "/v1/responses": {"input": "Tell me.", "max_output_tokens": 1},
    "/v1/messages": {"messages": ASK, "max_tokens": 1},
}


async def ask(http: httpx2.AsyncClient) -> None:
    listed = (await http.get("/v1/models")).json()["data"]
    assert [one["id"] for one in listed] == ["tiny", "other", "tiny:fr", "other:fr"]
    assert [one.get("parent") for one in listed] == [None, None, "tiny", "tiny"]
    assert (await http.get("/v1/models/tiny:fr")).json()["id"] == "tiny:fr"
    texts = []
    for model in ("tiny", "tiny:fr", "other:fr"):
        for path, body in BODIES.items():
            answer = (await http.post(path, json={"model": model, **body})).json()
            assert answer["model"] == model
            if path == "/v1/completions":
                texts.append(answer["choices"][0]["text"])
    assert texts[0] != texts[1] == texts[2]
    for model in ("fr", "tiny:en", "tiny:fr@0", "tiny:"):
        for path, body in BODIES.items():
            assert (await http.post(path, json={"model": model, **body})).status_code == 404


def test_a_request_names_its_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    adapter = random_adapter(tiny_folder, tmp_path / "adapter")
    settings = ServerConfig(name="tiny", aliases=("other",), adapters=("fr",))
    with Engine(
        fourfold.load(tiny_folder), EngineConfig(memory="64MiB", snapshots=4), adapters={"fr": adapter}
    ) as engine:
        backend = Backend(Thread(engine), engine.tokenizer, engine.model.config, Log(io.StringIO()))
        app = create_app(Server(backend, settings))

        async def run() -> None:
            transport = httpx2.ASGITransport(app=app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://server") as http:
                await ask(http)
            await backend.close()

        asyncio.run(run())
