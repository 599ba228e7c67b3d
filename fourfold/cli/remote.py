"""A conversation with a server that speaks Chat Completions, ours or another."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fourfold.cli import console
from fourfold.cli.answer import Spoken
from fourfold.errors import RequestError

_SECONDS = 600.0
"""For the next piece of an answer; servers that keep the line alive may take longer."""


@dataclass(frozen=True)
class Remote:
    """A server.  url: up to and with /v1, or without it; key: what it wants, if anything."""

    url: str
    key: str | None = None

    def models(self) -> list[str]:
        """The names of its models.  RequestError: it cannot be reached, or refuses."""
        with self._open("/models", None) as reply:
            document = json.load(reply)
        return [str(one["id"]) for one in document.get("data", ())]

    def stream(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of an answer, as they come.  RequestError: it cannot be reached, refuses, or fails."""
        with self._open("/chat/completions", {**body, "stream": True}) as reply:
            try:
                for line in reply:
                    text = line.decode("utf-8", "replace").strip()
                    if not text.startswith("data:") or text == "data: [DONE]":
                        continue
                    chunk = json.loads(text[5:])
                    if "error" in chunk:
                        raise RequestError(f"{self.url} says: {_message(chunk)}")
                    yield chunk
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise RequestError(f"{self.url} broke off: {error or type(error).__name__}") from None

    def _open(self, path: str, body: Mapping[str, Any] | None) -> http.client.HTTPResponse:
        base = self.url.rstrip("/")
        base = base if base.endswith("/v1") else f"{base}/v1"
        if not base.startswith(("http://", "https://")):
            raise RequestError(f"url is {self.url!r}; allowed: one that begins with http:// or https://")
        headers = {"content-type": "application/json"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(base + path, data, headers)
            found = urllib.request.urlopen(request, timeout=_SECONDS)
        except urllib.error.HTTPError as refused:
            with refused:
                raise RequestError(f"{self.url} refuses ({refused.code}): {_said(refused)}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise RequestError(f"{self.url} cannot be reached: {reason}") from None
        assert isinstance(found, http.client.HTTPResponse)
        return found


@dataclass
class RemoteConversation:
    """The turns so far.  options: of every request; system: in front of them."""

    remote: Remote
    model: str
    system: str | None
    options: Mapping[str, Any]
    turns: list[dict[str, Any]] = field(default_factory=list)

    def say(self, text: str) -> Spoken:
        """One turn: the user's text, the model's answer. One that fails leaves the conversation as it was."""
        question = {"role": "user", "content": text}
        first = [{"role": "system", "content": self.system}] if self.system else []
        body = {"model": self.model, "messages": [*first, *self.turns, question], **self.options}
        spoken = Spoken()
        used: Mapping[str, Any] = {}
        try:
            for chunk in self.remote.stream({**body, "stream_options": {"include_usage": True}}):
                used = chunk.get("usage") or used
                for choice in chunk.get("choices", ()):
                    _show(spoken, choice.get("delta") or {})
        except KeyboardInterrupt:
            spoken.interrupted = True
        console.answer("\n")
        console.note(("stopped, " if spoken.interrupted else "") + _usage_line(used))
        answer = {"role": "assistant", "content": spoken.text}
        self.turns += [question, answer]
        return spoken

    def reset(self) -> None:
        """Forget every turn."""
        self.turns.clear()


def _show(spoken: Spoken, delta: Mapping[str, Any]) -> None:
    if reasoning := delta.get("reasoning_content"):
        spoken.reasoning += reasoning
        console.aside(reasoning)
    if content := delta.get("content"):
        if spoken.reasoning and not spoken.text:
            console.aside("\n\n")
        spoken.text += content
        console.answer(content)


def _usage_line(used: Mapping[str, Any]) -> str:
    """128 tokens, 300 of 1,024 in the prompt cached"""
    if not used:
        return "the server did not say how many tokens"
    cached = (used.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    prompt = used.get("prompt_tokens", 0)
    return f"{used.get('completion_tokens', 0):,} tokens, {cached:,} of {prompt:,} in the prompt cached"


def _said(refused: urllib.error.HTTPError) -> str:
    try:
        return _message(json.load(refused))
    except (ValueError, OSError):
        return str(refused.reason)


def _message(document: Any) -> str:
    error = document.get("error") if isinstance(document, dict) else None
    return str(error.get("message") if isinstance(error, dict) else error or document)
