"""A conversation from Python: messages -> prompt, and a parser for the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from fourfold.errors import RequestError
from fourfold.protocol.conversion import Prompt, PromptFormat, Turn, convert
from fourfold.protocol.parser import AnswerParser

Effort = Literal["low", "high", "max"]


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A conversation up to the model's turn.

    messages: as in Chat Completions ({"role", "content", "reasoning_content", "tool_calls", …}).
    thinking: whether the model reasons first; effort: how hard ("low", "high", "max"), None = the format's
    own. tools: function tools as in Chat Completions. Raises RequestError, on use, naming what is refused.
    """

    messages: Sequence[Mapping[str, Any]]
    thinking: bool = False
    effort: Effort | None = None
    format: PromptFormat = "preview"
    tools: Sequence[Mapping[str, Any]] = field(default=())

    def prompt(self) -> Prompt:
        """The prompt's text, as the model was trained on it."""
        return self._turn().prompt

    def parser(self) -> AnswerParser:
        """A fresh parser for the answer to this conversation."""
        return self._turn().parser()

    def _turn(self) -> Turn:
        if self.effort is not None and self.effort not in get_args(Effort):
            raise RequestError(f"effort is {self.effort!r}; allowed: {', '.join(get_args(Effort))}")
        body: dict[str, Any] = {
            "messages": [dict(message) for message in self.messages],
            "thinking": {"type": "enabled" if self.thinking else "disabled"},
        }
        if self.thinking and self.effort is not None:
            body["reasoning_effort"] = self.effort
        if self.tools:
            body["tools"] = [dict(tool) for tool in self.tools]
        try:
            return convert("chat", body, format=self.format)
        except RequestError as error:
            raise RequestError(f"the conversation was refused: {error}") from None
