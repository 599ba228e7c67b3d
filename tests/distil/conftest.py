"""A teacher that is a function, and a configuration that asks it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from fourfold.distil.client import Client
from fourfold.distil.config import DistilConfig

MakeDistil = Callable[..., DistilConfig]
Answer = Callable[[dict[str, Any], int], httpx.Response]


class Teacher:
    """Answers requests by `answer(body, number)`; remembers bodies, headers and how long it was waited."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[httpx.Headers] = []
        self.urls: list[str] = []
        self.waits: list[float] = []

    def client(self, config: DistilConfig) -> Client:
        def handle(request: httpx.Request) -> httpx.Response:
            body = json.loads(request.content)
            self.bodies.append(body)
            self.headers.append(request.headers)
            self.urls.append(str(request.url))
            return self.answer(body, len(self.bodies))

        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        transport = httpx.MockTransport(handle)
        return Client(config.teacher, config.budget, transport=transport, sleep=sleep)


def openai_answer(text: str, *, finish: str = "stop", reasoning: str = "", tokens: int = 5) -> httpx.Response:
    message = {"role": "assistant", "content": text} | ({"reasoning_content": reasoning} if reasoning else {})
    usage = {"prompt_tokens": 10, "completion_tokens": tokens}
    return httpx.Response(
        200, json={"choices": [{"message": message, "finish_reason": finish}], "usage": usage}
    )


def echo(body: dict[str, Any], number: int) -> httpx.Response:
    return openai_answer(f"You said {body['messages'][-1]['content']}.")


@pytest.fixture
def make_distil(tmp_path: Path) -> MakeDistil:
    """make_distil(section={key: value}, prompts_text="..."): three prompts, terms accepted."""

    def make(prompts_text: str = "one\ntwo\nthree\n", **changes: dict[str, Any]) -> DistilConfig:
        (tmp_path / "prompts.txt").write_text(prompts_text, encoding="utf-8")
        values: dict[str, Any] = {
            "dir": str(tmp_path / "out"),
            "teacher": {"url": "http://teacher/v1", "model": "t", "terms": "ours", "accepted": True},
            "prompts": {"files": [str(tmp_path / "prompts.txt")]},
        }
        for section, change in changes.items():
            values.setdefault(section, {}).update(change)
        return DistilConfig.from_dict(values)

    return make
