"""One question to a teacher behind an OpenAI- or Anthropic-compatible API, tried again where that helps."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from fourfold.distil.config import BudgetSection, TeacherSection
from fourfold.distil.prompts import Question
from fourfold.errors import ConfigError, TrainError

BUSY = {408, 409, 425, 429, 500, 502, 503, 504, 529}
LONGEST_WAIT = 60.0
SHOWN = 300
"""Characters of a refusal that are shown."""
MOST_BYTES = 16 << 20

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the teacher said.  finish: "stop", "length" or the API's own word; tokens as it counts them."""

    content: str
    reasoning: str
    finish: str
    input_tokens: int
    output_tokens: int


class Refused(TrainError):
    """The teacher refuses this one question; others may be answered."""


class Client:
    """Asks one teacher."""

    def __init__(
        self,
        teacher: TeacherSection,
        budget: BudgetSection,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """transport, sleep: how requests go out and how waiting is done, for tests."""
        self.teacher, self.budget = teacher, budget
        self._sleep = sleep
        headers = {} if not teacher.key_env else self._key(teacher)
        self._http = httpx.AsyncClient(timeout=budget.timeout, headers=headers, transport=transport)

    @staticmethod
    def _key(teacher: TeacherSection) -> dict[str, str]:
        key = os.environ.get(teacher.key_env, "")
        if not key:
            raise ConfigError(
                f"teacher.key_env is {teacher.key_env}, which is not set; export {teacher.key_env}=… with "
                "the key"
            )
        if teacher.protocol == "anthropic":
            return {"x-api-key": key, "anthropic-version": "2023-06-01"}
        return {"Authorization": f"Bearer {key}"}

    async def close(self) -> None:
        """Hang up."""
        await self._http.aclose()

    async def ask(self, question: Question) -> Reply:
        """The teacher's answer.  Refused: it will not answer this.  TrainError: it cannot be asked at all."""
        openai = self.teacher.protocol == "openai"
        path = "/chat/completions" if openai else "/messages"
        body = (_openai if openai else _anthropic)(question, self.teacher.model)
        problem, wait = "", 0.0
        for attempt in range(self.budget.attempts):
            if attempt:
                await self._sleep(wait)
            wait = min(2.0**attempt, LONGEST_WAIT)
            try:
                response = await self._http.post(self.teacher.url.rstrip("/") + path, json=body)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if response.status_code in BUSY:
                problem = f"status {response.status_code}: {response.text[:SHOWN]}"
                wait = _asked_wait(response, wait)
                continue
            return self._read(response)
        raise TrainError(
            f"the teacher at {self.teacher.url} did not answer in {self.budget.attempts} attempts "
            f"({problem}); see that it runs, then start again: what was answered is kept"
        )

    def _read(self, response: httpx.Response) -> Reply:
        text = response.text
        if response.status_code in (401, 403, 404):
            raise TrainError(
                f"the teacher at {self.teacher.url} answers {response.status_code}: {text[:SHOWN]}; check "
                "teacher.url, teacher.model and the key"
            )
        if response.status_code != 200:
            raise Refused(f"status {response.status_code}: {text[:SHOWN]}")
        if len(response.content) > MOST_BYTES:
            raise Refused(f"an answer of {len(response.content):,} bytes")
        try:
            value = response.json()
            return _openai_reply(value) if self.teacher.protocol == "openai" else _anthropic_reply(value)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise TrainError(
                f"the teacher at {self.teacher.url} answers in another form than {self.teacher.protocol}'s "
                f"({type(error).__name__}: {error}): {text[:SHOWN]}"
            ) from error


def _asked_wait(response: httpx.Response, otherwise: float) -> float:
    try:
        return min(max(float(response.headers["retry-after"]), 0.0), LONGEST_WAIT)
    except (KeyError, ValueError):
        return otherwise


def _openai(question: Question, model: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": list(question.messages),
        "temperature": question.temperature,
        "top_p": question.top_p,
        "max_tokens": question.max_tokens,
        "seed": question.seed,
    }
    # Left out unless wanted: not every API knows it.
    return body | ({"thinking": {"type": "enabled"}} if question.thinking else {})


def _anthropic(question: Question, model: str) -> dict[str, Any]:
    system = "\n\n".join(m["content"] for m in question.messages if m["role"] == "system")
    body: dict[str, Any] = {
        "model": model,
        "messages": [m for m in question.messages if m["role"] != "system"],
        "temperature": question.temperature,
        "top_p": question.top_p,
        "max_tokens": question.max_tokens,
    }
    if question.thinking:
        body["thinking"] = {"type": "enabled", "budget_tokens": max(question.max_tokens // 2, 1)}
    return body | ({"system": system} if system else {})


def _openai_reply(value: dict[str, Any]) -> Reply:
    choice, usage = value["choices"][0], value.get("usage") or {}
    message = choice["message"]
    return Reply(
        content=str(message.get("content") or ""),
        reasoning=str(message.get("reasoning_content") or message.get("reasoning") or ""),
        finish=str(choice.get("finish_reason") or "stop"),
        input_tokens=int(usage.get("prompt_tokens") or 0),
        output_tokens=int(usage.get("completion_tokens") or 0),
    )


def _anthropic_reply(value: dict[str, Any]) -> Reply:
    blocks, usage = value["content"], value.get("usage") or {}
    finish = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}
    return Reply(
        content="".join(b["text"] for b in blocks if b["type"] == "text"),
        reasoning="".join(b["thinking"] for b in blocks if b["type"] == "thinking"),
        finish=finish.get(value.get("stop_reason") or "end_turn", str(value.get("stop_reason"))),
        input_tokens=int(usage.get("input_tokens") or 0),
        output_tokens=int(usage.get("output_tokens") or 0),
    )
