"""One request after another over plain sockets: cheap, so that the server has the machine for itself.

Each of four protocols is spoken, streamed, and its stream checked: a status of 200, events that are JSON, an
ending in the protocol's own words, and as many tokens as were asked for where the request says how many.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

Protocol = Literal["chat", "completions", "responses", "messages"]
PATHS: dict[Protocol, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
SECONDS = 120.0
"""For any one event; keep-alive comments count."""


class LoadError(Exception):
    """What a client would call a failure."""


@dataclass(frozen=True)
class Ask:
    """tokens: the longest answer, in protocols that know `ignore_eos` its length; leaves: after so many
    events of text the client hangs up."""

    protocol: Protocol
    text: str
    tokens: int
    leaves: int | None = None

    def body(self, model: str) -> dict[str, Any]:
        body: dict[str, Any] = {"model": model, "stream": True}
        said = [{"role": "user", "content": self.text}]
        if self.protocol == "responses":
            return body | {"input": self.text, "max_output_tokens": self.tokens}
        body["max_tokens"] = self.tokens
        if self.protocol == "messages":
            return body | {"messages": said}
        body |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
        return body | ({"messages": said} if self.protocol == "chat" else {"prompt": self.text})


class Mix:
    """Requests of all protocols: prompts and answers short and long, some prompts that begin alike.

    texts: what prompts are cut from.  longest: words of a prompt.  One of `leaving` hangs up early.
    """

    def __init__(self, texts: Sequence[str], seed: int, longest: int = 600, leaving: int = 25) -> None:
        self._words = " ".join(texts).split()
        self._random = random.Random(seed)
        self._longest = longest
        self._leaving = leaving

    def next(self) -> Ask:
        draw = self._random
        words = round(8 * (self._longest / 8) ** draw.random())
        # A quarter begins with one of four texts, as conversations with one system prompt do.
        start = 1000 * draw.randrange(4) if draw.random() < 0.25 else draw.randrange(len(self._words) - words)
        own = f" ({draw.randrange(10**6)})"
        return Ask(
            protocol=draw.choice(list(PATHS)),
            text=" ".join(self._words[start : start + words]) + own,
            tokens=round(16 * 16 ** draw.random()),
            leaves=draw.randrange(1, 8) if draw.randrange(self._leaving) == 0 else None,
        )


@dataclass
class Tally:
    """first: seconds to the first text of a request; gaps: between two texts; whole: of whole requests.

    tokens: of answers that came whole; left: requests whose client hung up; errors: what went wrong.
    """

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    by_protocol: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    prompt_tokens: int = 0
    left: int = 0
    errors: list[str] = field(default_factory=list)


async def drive(
    host: str, port: int, model: str, mix: Mix, tally: Tally, *, until: float, key: str = ""
) -> None:
    """One stream of requests, one after the other, until `time.monotonic()` says so."""
    while time.monotonic() < until:
        ask = mix.next()
        try:
            await _one(host, port, key, ask, ask.body(model), tally)
        except (LoadError, OSError, ValueError, KeyError, IndexError, TimeoutError, EOFError) as error:
            tally.errors.append(f"{ask.protocol}: {type(error).__name__}: {error}")
            await asyncio.sleep(0.2)


async def _one(host: str, port: int, key: str, ask: Ask, body: dict[str, Any], tally: Tally) -> None:
    data = json.dumps(body).encode()
    begin = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(
            f"POST {PATHS[ask.protocol]} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Authorization: Bearer {key or 'none'}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        await _status(reader)
        texts, last = 0, begin
        reading = _Reading(ask.protocol)
        async for event in _events(reader):
            if reading.take(event):
                now = time.perf_counter()
                (tally.gaps if texts else tally.first).append(now - last)
                texts, last = texts + 1, now
                if ask.leaves is not None and texts > ask.leaves:
                    tally.left += 1
                    return
        reading.check(ask)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    tally.whole.append(time.perf_counter() - begin)
    tally.by_protocol[ask.protocol] = tally.by_protocol.get(ask.protocol, 0) + 1
    tally.tokens += reading.tokens
    tally.prompt_tokens += reading.prompt_tokens


async def _status(reader: asyncio.StreamReader) -> None:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SECONDS)
    status = int(head.split(b" ", 2)[1])
    if status != 200:
        raise LoadError(f"status {status}: {(await reader.read(300)).decode(errors='replace')}")


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """The data of each event; the body's chunks are put together."""
    rest = b""
    while size := int(await asyncio.wait_for(reader.readuntil(b"\r\n"), SECONDS), 16):
        rest += (await reader.readexactly(size + 2))[:-2]
        *events, rest = rest.split(b"\n\n")
        for event in events:
            for line in event.split(b"\n"):
                if line.startswith(b"data: "):
                    yield line[6:].decode()
    if rest:
        raise LoadError("the stream ends within an event")


class _Reading:
    """What a stream has said so far."""

    def __init__(self, protocol: Protocol) -> None:
        self.tokens = self.prompt_tokens = 0
        self._protocol = protocol
        self._finish = ""
        self._done = False

    def take(self, data: str) -> bool:
        """Whether the event brings text."""
        if self._done:
            raise LoadError(f"an event follows the last one: {data[:100]}")
        if data == "[DONE]":
            self._done = True
            return False
        event = json.loads(data)
        if event.get("error") or event.get("type") == "error":
            raise LoadError(data[:300])
        return self._openai(event) if self._protocol in ("chat", "completions") else self._typed(event)

    def _openai(self, event: dict[str, Any]) -> bool:
        if event.get("usage"):
            self.tokens = event["usage"]["completion_tokens"]
            self.prompt_tokens = event["usage"]["prompt_tokens"]
        said = False
        for choice in event["choices"]:
            self._finish = choice["finish_reason"] or self._finish
            said |= bool(choice.get("text") or choice.get("delta", {}).get("content"))
        return said

    def _typed(self, event: dict[str, Any]) -> bool:
        kind = event["type"]
        if kind in ("response.completed", "response.incomplete"):
            self._done, self._finish = True, kind
            self.tokens = event["response"]["usage"]["output_tokens"]
            self.prompt_tokens = event["response"]["usage"]["input_tokens"]
        elif kind == "message_delta":
            self._finish = event["delta"]["stop_reason"]
            self.tokens = event["usage"]["output_tokens"]
            self.prompt_tokens = event["usage"]["input_tokens"]
            self.prompt_tokens += event["usage"]["cache_read_input_tokens"]
        elif kind == "message_stop":
            self._done = True
        return kind in ("response.output_text.delta", "content_block_delta")

    def check(self, ask: Ask) -> None:
        """LoadError: the stream has not ended as it should."""
        if not self._done or not self._finish:
            raise LoadError("the stream breaks off")
        exact = self._protocol in ("chat", "completions")
        if self.tokens > ask.tokens or (exact and self.tokens != ask.tokens):
            raise LoadError(f"{self.tokens} tokens came of {ask.tokens}")
