"""Conversations as training samples: the prompt as it is rendered when the model is asked, and the answer.

One sample holds all answers of a conversation where each of its prompts begins with all that came before. It
does not where reasoning of earlier turns is left out of later prompts; then every answer is a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fourfold.errors import RequestError, TrainError
from fourfold.protocol import Chat, Prompt, PromptFormat
from fourfold.tokenizer import Tokenizer

Encoded = tuple[list[int], list[bool]]
"""Ids, and which of them an answer is made of."""
END_OF_THINKING = "</think>"
EOS = "<｜end▁of▁sentence｜>"


def conversation(
    record: Mapping[str, Any], tokenizer: Tokenizer, end: int, prompt_format: PromptFormat
) -> list[Encoded]:
    """The samples of {"messages": [...], "tools": [...]}.  end: id of the end-of-sentence token.

    A message of the assistant may hold reasoning_content and tool_calls.  TrainError: the library refuses the
    conversation, or it has no message of the assistant.
    """
    messages, tools = record["messages"], record.get("tools") or ()
    turns = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if not turns:
        raise TrainError("a conversation has no message of the assistant, so there is nothing to learn")
    samples: list[Encoded] = []
    for turn in turns:
        try:
            head, answer = _turn(messages, turn, tools, prompt_format)
        except RequestError as error:
            raise TrainError(f"message {turn} of a conversation: {error}") from error
        prompt, body = head.encode(tokenizer), [*answer.encode(tokenizer), end]
        ids = [*prompt, *body]
        learn = [False] * len(prompt) + [True] * len(body)
        if samples and ids[: len(samples[-1][0])] == samples[-1][0]:
            earlier = samples.pop()[1]
            learn[: len(earlier)] = earlier
        samples.append((ids, learn))
    return samples


def _turn(
    messages: Sequence[Mapping[str, Any]],
    turn: int,
    tools: Sequence[Mapping[str, Any]],
    prompt_format: PromptFormat,
) -> tuple[Prompt, Prompt]:
    """The prompt that asks for message `turn`, and the answer without its end-of-sentence token."""
    message = messages[turn]
    reasoning, content = message.get("reasoning_content") or "", message.get("content") or ""

    def rendered(until: Sequence[Mapping[str, Any]]) -> Prompt:
        return Chat(messages=until, thinking=bool(reasoning), format=prompt_format, tools=tools).prompt()

    head = rendered(messages[:turn])
    if calls := message.get("tool_calls"):
        # How calls are written is the library's to know; with tools it keeps reasoning too.
        results = [{"role": "tool", "tool_call_id": call.get("id"), "content": ""} for call in calls]
        return head, _after(head, rendered([*messages[: turn + 1], *results]))
    if not reasoning:
        return head, Prompt(content, ())
    closed = len(reasoning) + len(END_OF_THINKING)
    return head, Prompt(f"{reasoning}{END_OF_THINKING}{content}", ((len(reasoning), closed),))


def _after(head: Prompt, whole: Prompt) -> Prompt:
    """What `whole` says after `head`, up to the end of that turn."""
    begin = len(head.text)
    later = [(start, stop) for start, stop in whole.special_ranges if start >= begin]
    ends = [start for start, stop in later if whole.text[start:stop] == EOS]
    if not whole.text.startswith(head.text) or not ends:
        raise TrainError("a call of tools is not rendered behind its prompt; give the conversation its tools")
    ranges = tuple((start - begin, stop - begin) for start, stop in later if stop <= ends[0])
    return Prompt(whole.text[begin : ends[0]], ranges)
