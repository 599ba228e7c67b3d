"""Showing an answer as it is written: content on stdout, reasoning on stderr; Ctrl-C keeps what was said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fourfold.cli import console
from fourfold.engine.generate import Generation
from fourfold.protocol import Chat, Part, TextDelta


@dataclass
class Spoken:
    """What was shown. interrupted: the user stopped it with Ctrl-C."""

    text: str = ""
    reasoning: str = ""
    interrupted: bool = False


def speak(generation: Generation, chat: Chat | None, *, show: bool = True) -> Spoken:
    """Show the pieces as they come. `chat` splits them into reasoning and content; else all is content."""
    parser = chat.parser() if chat is not None else None
    spoken = Spoken()

    def take(parts: Sequence[Part]) -> None:
        for part in parts:
            if not isinstance(part, TextDelta):
                continue  # a call: nothing here has tools
            if part.reasoning:
                spoken.reasoning += part.text
            else:
                spoken.text += part.text
            if show and part.reasoning:
                console.aside(part.text)
            elif show:
                if spoken.reasoning and spoken.text == part.text:
                    console.aside("\n\n")
                console.answer(part.text)

    try:
        for piece in generation:
            take(parser.push(piece) if parser else [TextDelta(piece)])
    except KeyboardInterrupt:
        spoken.interrupted = True
        rest = generation.rest()
        take(parser.push(rest) if parser else [TextDelta(rest)])
    if parser:
        take(parser.finish())
    return spoken


def messages_of(system: str | None, user: str) -> list[dict[str, Any]]:
    """A conversation's beginning."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": user}]


def speed_line(generation: Generation) -> str:
    """128 tokens, 4,096 of the prompt cached, prefill 2,310 tok/s, decode 41.3 tok/s."""
    timing = generation.timing
    parts = [f"{len(generation.ids):,} token{'' if len(generation.ids) == 1 else 's'}"]
    if generation.cached_tokens:
        parts.append(f"{generation.cached_tokens:,} of the prompt cached")
    if timing.prefill_seconds:
        parts.append(f"prefill {console.rate(timing.prefill_rate)}")
    if timing.decode_tokens:
        parts.append(f"decode {console.rate(timing.decode_rate)}")
    return ", ".join(parts)
