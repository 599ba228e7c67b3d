"""Chat messages -> prompt -> token ids, and the model's text -> reasoning and content.

`deepseek-recipe` renders and parses; this module chooses the prompt format of the checkpoint, turns its
errors into ours and encodes the prompt with our tokenizer, so that only the markers that the library wrote
become special tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fourfold.errors import RequestError
from fourfold.tokenizer import Tokenizer

PromptFormat = Literal["preview", "0813"]
Effort = Literal["low", "high", "max"]

# The library renders the later format. The April release ("preview") knows two efforts; its high is the later
# low, its max the later high. Each row: our effort, None for thinking without one -> the library's.
_EFFORTS: dict[PromptFormat, dict[str | None, str]] = {
    "preview": {None: "low", "low": "low", "high": "low", "max": "high"},
    "0813": {None: "high", "low": "low", "high": "high", "max": "max"},
}
_TOOL_MARKER = "<｜DSML｜"
_MODEL = "DeepSeek-V4-Pro"  # the library's name for V4 rendering; it never reaches the prompt


def prompt_format(checkpoint: str) -> PromptFormat:
    """The format that a checkpoint of this name was trained with: "0813" for dated releases, else "preview".

    Dated releases end in four digits (DeepSeek-V4-Pro-0813, DeepSeek-V4-Flash-0731). A name can lie: every
    caller lets the user choose.
    """
    name = re.split(r"[\\/]", checkpoint.rstrip("\\/"))[-1]
    return "0813" if re.search(r"V4[\w.]*-(Flash|Pro)-\d{4}$", name, re.IGNORECASE) else "preview"


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt: its text, and the ranges of it that are special tokens; all else is plain text."""

    text: str
    special_ranges: tuple[tuple[int, int], ...]

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """Token ids. A special token spelled inside a message stays plain text.

        Raises TokenizerError when the tokenizer lacks one of the prompt's special tokens.
        """
        ids: list[int] = []
        end = 0
        for start, stop in self.special_ranges:
            ids += tokenizer.encode(self.text[end:start])
            ids.append(tokenizer.token_id(self.text[start:stop]))
            end = stop
        return ids + tokenizer.encode(self.text[end:])


@dataclass(frozen=True)
class Delta:
    """What one piece of model text added. tool_calls: the chunks of the Chat Completions stream."""

    reasoning: str = ""
    content: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()


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
        import deepseek_recipe as recipe

        rendered = recipe.DeepseekV4Encoding().render_conversation(self._convert().conversation)
        return Prompt(rendered.prompt, tuple(rendered.special_ranges))

    def parser(self) -> AnswerParser:
        """A fresh parser for the answer to this conversation."""
        return AnswerParser(self._convert())

    def _convert(self) -> Any:
        import deepseek_recipe as recipe

        try:
            return recipe.ChatCompletionRequest(self._body()).convert(recipe.ConversionOptions())
        except (recipe.ConversionError, ValueError, TypeError) as error:
            raise RequestError(f"the conversation was refused: {error}") from None

    def _body(self) -> dict[str, Any]:
        if self.format not in _EFFORTS:
            raise RequestError(f"prompt format is {self.format!r}; allowed: {', '.join(_EFFORTS)}")
        efforts = _EFFORTS[self.format]
        if self.effort not in efforts:
            raise RequestError(
                f"effort is {self.effort!r}; allowed: {', '.join(key for key in efforts if key)}"
            )
        body: dict[str, Any] = {
            "model": _MODEL,
            "messages": [dict(message) for message in self.messages],
            "stream": True,
        }
        body["thinking"] = {"type": "enabled" if self.thinking else "disabled"}
        if self.thinking:
            body["reasoning_effort"] = efforts[self.effort]
        if self.tools:
            body["tools"] = [dict(tool) for tool in self.tools]
        return body


class AnswerParser:
    """Splits the model's text into reasoning, content and tool calls as it arrives.

    No text is lost when it is malformed.
    """

    def __init__(self, request: Any) -> None:
        import deepseek_recipe as recipe

        generator = recipe.ChatCompletionRequest.chunk_generator(request, "chat", _MODEL)
        self._processor = recipe.StreamProcessor(generator, request.parsing_options)
        self._processor.push(recipe.InferenceChunk.ready())
        self._said = ""  # the model's text
        self._shown = ""  # what came out of it
        self._called = False

    def push(self, text: str) -> Delta:
        """What `text`, with what was held back before it, adds for certain."""
        import deepseek_recipe as recipe

        delta = _merge(self._processor.push(recipe.InferenceChunk.text(text, 1)))
        self._said += text
        self._note(delta)
        return delta

    def finish(self) -> Delta:
        """What was still held back when the model ended or was stopped."""
        import deepseek_recipe as recipe

        if self._processor.finished:
            return Delta()
        chunks = self._processor.push(recipe.InferenceChunk.finish(recipe.InferenceFinishReason.Stop))
        delta = _merge([*chunks, *self._processor.finish()])
        self._note(delta)
        # The library drops a tool-call block that is cut before its first call; we give it as text.
        start = self._said.find(_TOOL_MARKER)
        if start >= 0 and not self._called and _TOOL_MARKER not in self._shown:
            return Delta(delta.reasoning, delta.content + self._said[start:])
        return delta

    def _note(self, delta: Delta) -> None:
        self._shown += delta.reasoning + delta.content
        self._called = self._called or bool(delta.tool_calls)


def _merge(chunks: Sequence[Any]) -> Delta:
    """The library's chunks as one Delta."""
    deltas = [choice["delta"] for chunk in chunks for choice in json.loads(chunk.to_json())["choices"]]
    return Delta(
        reasoning="".join(delta.get("reasoning_content") or "" for delta in deltas),
        content="".join(delta.get("content") or "" for delta in deltas),
        tool_calls=tuple(call for delta in deltas for call in delta.get("tool_calls") or ()),
    )
