"""One HTTP request from its first byte to its last: its record, and its line in the log."""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TextIO


@dataclass
class Call:
    """What is known of a request.  key: the short name of its API key.

    tokens: of prompts, of them cached, of answers, of them reasoning.  finish: why its answers ended.
    """

    id: str
    method: str
    path: str
    key: str = ""
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    stream: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    finish: list[str] = field(default_factory=list)
    error: str = ""
    texts: list[str] = field(default_factory=list)
    """Prompt and answers, where the operator wants them in the log."""

    asked: int = 0
    """Requests to the engine."""

    def label(self) -> str:
        """What traces call the next request to the engine."""
        self.asked += 1
        return self.id if self.asked == 1 else f"{self.id} prompt {self.asked}"

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def call_id(wanted: str | None) -> str:
    """The id that a client gave its request if it is a plain one, else a fresh one."""
    if wanted and re.fullmatch(r"[\w.:-]{1,128}", wanted, re.ASCII):
        return wanted
    return f"req_{secrets.token_hex(12)}"


LogFormat = Literal["json", "text"]


class Log:
    """One line an event: JSON, or words.  Of texts only what the caller puts in."""

    def __init__(self, format: LogFormat = "json", stream: TextIO | None = None) -> None:
        self._format = format
        self._stream = stream

    def write(self, event: str, **fields: Any) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        if self._format == "json":
            text = _json({"time": time, "event": event, **fields})
        else:
            # Values as JSON: none can begin another line.
            words = [f"{name}={_json(value)}" for name, value in fields.items()]
            text = " ".join([time, event, *words])
        print(text, file=self._stream or sys.stderr, flush=True)

    def call(self, call: Call) -> None:
        """The line of a request that has ended."""
        line: dict[str, Any] = {
            "id": call.id,
            "method": call.method,
            "path": call.path,
            "status": call.status,
            "seconds": round(call.seconds, 4),
        }
        if call.key:
            line["key"] = call.key
        if call.prompt_tokens:
            names = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "stream")
            line |= {name: getattr(call, name) for name in (*names, "finish")}
        if call.error:
            line["error"] = call.error
        if call.texts:
            line["texts"] = call.texts
        self.write("request", **line)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, default=str)
