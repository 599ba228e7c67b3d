"""Generated agent sessions: what clients send turn by turn, and what the model answers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fourfold.protocol import Chat
from fourfold.tokenizer import Tokenizer

SYSTEM = "You are a careful assistant who works on a code base. Read before you change anything. "
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string", "description": f"the {key}"} for key in keys},
                "required": keys,
            },
        },
    }
    for name, description, keys in (
        ("read_file", "Read a file of the project.", ["path"]),
        ("search", "Find lines that match an expression.", ["pattern", "path"]),
        ("edit_file", "Replace a passage of a file.", ["path", "old", "new"]),
        ("run", "Run a command and give its output.", ["command"]),
    )
]


@dataclass(frozen=True)
class Turn:
    """One request: the prompt's ids, and those that the model will say."""

    prompt: list[int]
    answer: list[int]


@dataclass
class Session:
    """One client.  words: a text that messages are cut from; context: tokens that the last prompt has.

    tools: each task is a user's message and some rounds of tool calls; the reasoning stays in the history, as
    V4's format has it.  Else plain chat, where it does not.  Every seventh turn, the client edits its last
    message and asks again.
    """

    tokenizer: Tokenizer
    words: Sequence[str]
    seed: int
    turns: int
    context: int
    tools: bool
    messages: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self.messages = [{"role": "system", "content": SYSTEM * 20}]

    def __iter__(self) -> Iterator[Turn]:
        for number in range(self.turns):
            if number % 7 == 6:
                self._edit()
            elif self.tools and self.messages[-1].get("tool_calls"):
                call = self.messages[-1]["tool_calls"][0]["id"]
                self._add(number, {"role": "tool", "tool_call_id": call})
            else:
                self._add(number, {"role": "user"})
            yield self._ask(number)

    def _add(self, number: int, message: dict[str, Any]) -> None:
        """A message of such a length that the last prompt will have `context` tokens."""
        self.messages.append(message | {"content": ""})
        missing = self.context - len(self._render(self.messages))
        share = missing / (self.turns - number) * self._random.uniform(0.5, 1.5)
        self.messages[-1]["content"] = self._text(max(10, int(share) - 120))

    def _edit(self) -> None:
        """The last message but the answer, with another end."""
        self.messages.pop()
        last = self.messages[-1]
        last["content"] = last["content"][: len(last["content"]) // 2] + self._text(40)

    def _ask(self, number: int) -> Turn:
        prompt = self._render(self.messages)
        reasoning, content = self._text(self._random.randint(20, 80)), self._text(20)
        said: dict[str, Any] = {"role": "assistant", "reasoning_content": reasoning, "content": content}
        calls = self.tools and self._random.random() < 0.75
        if calls:
            arguments = {"path": f"src/{self._random.choice(self.words)}.py"}
            function = {"name": "read_file", "arguments": json.dumps(arguments)}
            said["tool_calls"] = [{"id": f"call_{number}", "type": "function", "function": function}]
        answer = self._answer(prompt, said)
        self.messages.append(said)
        return Turn(prompt, answer)

    def _answer(self, prompt: list[int], said: dict[str, Any]) -> list[int]:
        """The ids with which the history goes on where it keeps the reasoning, as it does with tools."""
        eos = self.tokenizer.token_id("<｜end▁of▁sentence｜>")
        if not self.tools:
            return [
                *self.tokenizer.encode(said["reasoning_content"]),
                self.tokenizer.token_id("</think>"),
                *self.tokenizer.encode(said["content"]),
                eos,
            ]
        role = (
            {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"]}
            if "tool_calls" in said
            else {"role": "user"}
        )
        longer = self._render([*self.messages, said, role | {"content": "x"}])
        assert longer[: len(prompt)] == prompt
        return longer[len(prompt) : longer.index(eos, len(prompt)) + 1]

    def _render(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        chat = Chat(messages=messages, thinking=True, tools=TOOLS if self.tools else ())
        return chat.prompt().encode(self.tokenizer)

    def _text(self, tokens: int) -> str:
        """About so many tokens."""
        start = self._random.randrange(len(self.words) - tokens)
        return " ".join(self.words[start : start + int(tokens / 1.25)])
