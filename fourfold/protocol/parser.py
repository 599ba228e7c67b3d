"""The model's text -> reasoning, content and tool calls, in the order in which they come."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fourfold.protocol.tool_calls import MARK, CallDelta, ToolCalls

_THINK_END = "</think>"


@dataclass(frozen=True)
class TextDelta:
    """A piece of the answer's text, or of its reasoning."""

    text: str
    reasoning: bool = False


Part = TextDelta | CallDelta
"""What a piece of the model's text adds."""


@dataclass(frozen=True)
class Stage:
    """Where in an answer the prompt ends.

    thinking: in a turn that reasons.  reasoning: in its reasoning.  continued: behind some of it or, where
    not in the reasoning, some of the content.  opened: in a block of tool calls.
    """

    thinking: bool = False
    reasoning: bool = False
    continued: bool = False
    opened: bool = False


class AnswerParser:
    """Splits an answer as it arrives: reasoning ends at its mark, tool calls are DSML, all else is content.

    However it is cut into pieces the parts are the same, and no text is lost when it is malformed.
    stop: strings that end the content and are no part of it; `stop_sequence` is the one that did.
    tools: the request has tools; without them DSML is text.
    """

    def __init__(self, stage: Stage = Stage(), *, stop: Sequence[str] = (), tools: bool = False) -> None:
        self.reasoning = stage.reasoning
        """What comes next is reasoning."""
        self.stop_sequence: str | None = None
        self.ended = False
        self._thinking = stage.thinking
        self._stop = list(stop)
        self._tools = tools
        self._count = 0
        self._held = ""  # text that may belong to the mark of a block of calls
        self._after_calls = False
        self._calls: ToolCalls | None = ToolCalls() if stage.opened else None
        self._text = _Text(self._thinking, self.reasoning, stage.continued, self._stop)

    @property
    def called(self) -> bool:
        """A tool was called."""
        return self._count > 0 or (self._calls is not None and self._calls.count > 0)

    def push(self, text: str) -> list[Part]:
        """What `text`, with what was held back before it, adds for certain; nothing once it has `ended`."""
        return joined(self._read(text))

    def finish(self, *, complete: bool = True) -> list[Part]:
        """What was still held back when the model ended (complete) or was stopped."""
        return joined(self._finish(complete))

    def _read(self, text: str) -> Iterator[Part]:
        while text and not self.ended:
            if self._calls is None:
                self._held, text = self._held + text, ""
                at = self._held.find(MARK) if self._tools else -1
                if at < 0:
                    yield from self._show(self._certain())
                    continue
                before, text, self._held = self._held[:at], self._held[at:], ""
                # The format has two line ends in front of a block.
                own = before.removesuffix("\n").removesuffix("\n")
                if self._after_calls and not own.strip():
                    own = ""
                yield from self._show(own)
                yield from self._end_text()
                self._calls = ToolCalls(self._count, before[len(own) :])
                continue
            yield from _parts(self._calls.push(text), self.reasoning)
            text = ""
            if self._calls.closed:
                text, self._count, self._calls = self._calls.rest, self._calls.count, None
                self._after_calls = True
                self._text = _Text(self._thinking, self.reasoning, True, self._stop)

    def _finish(self, complete: bool) -> Iterator[Part]:
        if self.ended:
            return
        if self._calls is not None:
            yield from _parts(self._calls.finish(complete=complete), self.reasoning)
        else:
            if self._held.strip() or not self._after_calls:
                yield from self._show(self._held)
            yield from self._end_text()
        self.ended = True

    def _certain(self) -> str:
        """Takes from the held text what is no part of a mark, or of the space around it."""
        if not self._tools:
            end = len(self._held)
        else:
            most = min(len(self._held), len(MARK) - 1)
            keep = next((n for n in range(most, 0, -1) if MARK.startswith(self._held[-n:])), 0)
            end = len(self._held) - keep
            end -= len(self._held[:end]) - len(self._held[:end].removesuffix("\n").removesuffix("\n"))
        if self._after_calls and not self._held[:end].strip():
            return ""
        certain, self._held = self._held[:end], self._held[end:]
        return certain

    def _show(self, text: str) -> Iterator[Part]:
        if not text or self.ended:
            return
        self._after_calls = False
        yield from self._text.push(text)
        self._note()

    def _end_text(self) -> Iterator[Part]:
        if not self.ended:
            yield from self._text.finish()
            self._note()

    def _note(self) -> None:
        self.reasoning = self._text.reasoning
        self.stop_sequence = self._text.stop_sequence
        self.ended = self.stop_sequence is not None


class _Text:
    """The publisher's parser for text without calls: reasoning and content, and the strings that stop it."""

    def __init__(self, thinking: bool, reasoning: bool, continued: bool, stop: Sequence[str]) -> None:
        import deepseek_recipe as recipe

        stages = recipe.ThinkingInitialStage
        stage = None
        if thinking and not reasoning:
            stage = stages.ContentContinuation
        elif thinking:
            stage = stages.ReasoningContinuation if continued else stages.ReasoningStart
        options = recipe.ParsingOptions(
            parse_tool_calls=False, thinking_initial_stage=stage, stop_sequences=list(stop)
        )
        # Of its three kinds of events these name the stop string.
        self._processor = recipe.StreamProcessor(recipe.MessagesChunkGenerator("", "", thinking), options)
        self._processor.push(recipe.InferenceChunk.ready())
        self._tail = ""
        self.reasoning = reasoning
        self.stop_sequence: str | None = None

    def push(self, text: str) -> Iterator[Part]:
        import deepseek_recipe as recipe

        if self.reasoning:
            self._tail += text
            self.reasoning = _THINK_END not in self._tail
            self._tail = self._tail[-len(_THINK_END) :]
        yield from self._events(self._processor.push(recipe.InferenceChunk.text(text, 1)))

    def finish(self) -> Iterator[Part]:
        import deepseek_recipe as recipe

        if not self._processor.finished:
            finish = recipe.InferenceChunk.finish(recipe.InferenceFinishReason.Stop)
            yield from self._events([*self._processor.push(finish), *self._processor.finish()])

    def _events(self, events: Sequence[Any]) -> Iterator[Part]:
        for event in events:
            delta = json.loads(event.to_json()).get("delta") or {}
            self.stop_sequence = delta.get("stop_sequence") or self.stop_sequence
            if text := delta.get("thinking"):
                yield TextDelta(text, reasoning=True)
            elif text := delta.get("text"):
                yield TextDelta(text)


def _parts(found: Iterator[CallDelta | str], reasoning: bool) -> Iterator[Part]:
    return (TextDelta(one, reasoning) if isinstance(one, str) else one for one in found)


def joined(parts: Iterable[Part]) -> list[Part]:
    """Neighbours of one kind as one."""
    return [_one(list(run)) for _, run in itertools.groupby(parts, _kind)]


def _kind(part: Part) -> bool | str:
    return part.reasoning if isinstance(part, TextDelta) else str(part.index)


def _one(run: list[Part]) -> Part:
    first = run[0]
    if isinstance(first, TextDelta):
        return TextDelta("".join(part.text for part in run if isinstance(part, TextDelta)), first.reasoning)
    arguments = "".join(part.arguments for part in run if isinstance(part, CallDelta))
    return CallDelta(first.index, arguments, first.id, first.name)
