"""`/v1/messages` and `/v1/messages/count_tokens`, the protocol of Anthropic's clients."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from fourfold.engine.request import Request as EngineRequest
from fourfold.protocol import CallDelta, Part, TextDelta, Turn, convert
from fourfold.server.answering import End, Reply, Usage, Whole, asked, constraint_of, gathered
from fourfold.server.backend import Server
from fourfold.server.errors import Document
from fourfold.server.request import Body, SamplingFields, call_of, check_count, check_model, server_of
from fourfold.server.stream import sse, streamed, unless_gone

router = APIRouter(tags=["Anthropic"])

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn"}


class CacheControl(Body):
    """Without effect: prefixes are cached without being asked."""

    type: Literal["ephemeral"]
    ttl: str | None = None


class Block(Body):
    cache_control: CacheControl | None = None


class TextBlock(Block):
    type: Literal["text"]
    text: str
    citations: list[Any] | None = Field(default=None, max_length=0)


class ThinkingBlock(Block):
    """signature: any; reasoning is read as it is sent back."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class ToolUseBlock(Block):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: dict[str, Any] | None = None


class ToolResultBlock(Block):
    """is_error does not reach the prompt, whose format has no place for it."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


Content = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class Message(Body):
    role: Literal["user", "assistant", "system"]
    content: str | list[Content]


class Tool(Block):
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    strict: bool | None = None
    defer_loading: Literal[False] | None = None
    eager_input_streaming: bool | None = None


class ToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    """budget_tokens bounds nothing: V4 has efforts instead, `output_config.effort`."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    display: Literal["summarized"] | None = None


class AnswerFormat(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    effort: str | None = None
    format: AnswerFormat | None = None


class KeepThinking(Body):
    """The one edit of the conversation that leaves it as it is."""

    type: Literal["clear_thinking_20251015"]
    keep: Literal["all"]


class ContextManagement(Body):
    edits: list[KeepThinking]


class Conversation(Body):
    """What a prompt is made of."""

    model: str
    messages: list[Message]
    system: str | list[TextBlock] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    context_management: ContextManagement | None = None

    def turn(self, server: Server) -> Turn:
        """RequestError: the conversation is refused."""
        body = self.given("messages", "system", "thinking", "output_config", "tools", "tool_choice")
        stop = getattr(self, "stop_sequences", None) or []
        body |= {"max_tokens": 1, "stop_sequences": stop}  # what is asked for is not the library's affair
        return convert("messages", body, format=server.config.format, thinking=server.config.thinking)


class CountRequest(Conversation):
    """The body of `/v1/messages/count_tokens`."""


class MessagesRequest(Conversation, SamplingFields):
    """Fields that cannot change an answer are accepted; all others that are not here are refused."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None

    def engine_request(self, server: Server, turn: Turn) -> EngineRequest:
        """RequestError: a value is not allowed."""
        return EngineRequest(
            prompt=turn.prompt.encode(server.engine.tokenizer),
            max_tokens=self.max_tokens,
            sampling=self.sampling(server),
            adapter=server.config.adapter_of(self.model),
            constraint=constraint_of(server, turn),
        )


@router.post("/v1/messages", operation_id="messages", response_model=None)
async def messages(body: MessagesRequest, request: Request) -> Response:
    """An answer to a conversation."""
    server, call = server_of(request), call_of(request)
    check_model(server, body.model)
    check_count(server, body.messages)
    turn = await run_in_threadpool(body.turn, server)
    wanted = await run_in_threadpool(body.engine_request, server, turn)
    if server.config.log_prompts:
        call.texts.append(turn.prompt.text)
    alone = body.tool_choice is not None and body.tool_choice.disable_parallel_tool_use is True
    message_id = f"msg_{secrets.token_hex(12)}"

    reply = Reply(server, call, wanted, turn, one_call=alone)
    if body.stream:
        source = stream(reply, message_id, body.model)
        return await streamed(
            server, call, reply, source, lambda error: sse(error.document(call.path, call.id), "error")
        )

    async def whole() -> dict[str, Any]:
        async with asked(reply):
            (answer,) = await gathered(reply)
            return _message(message_id, body.model, reply, answer)

    return Document(await unless_gone(request, whole()))


@router.post("/v1/messages/count_tokens", operation_id="count_tokens", response_model=None)
async def count_tokens(body: CountRequest, request: Request) -> Response:
    """How many tokens a conversation's prompt has."""
    server = server_of(request)
    check_model(server, body.model)
    check_count(server, body.messages)

    def count() -> int:
        return len(body.turn(server).prompt.encode(server.engine.tokenizer))

    return Document({"input_tokens": await run_in_threadpool(count)})


def _message(message_id: str, model: str, reply: Reply, whole: Whole | None) -> dict[str, Any]:
    """The message; None: as it begins."""
    finish = None if whole is None else _ending(whole.finish, whole.stop)
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [] if whole is None else [_block(part, message_id) for part in whole.parts],
        **(finish or {"stop_reason": None, "stop_sequence": None}),
        "usage": _usage(reply.usage, 0 if whole is None else reply.usage.completion),
    }


def _ending(finish: str, stop: str | None) -> dict[str, Any]:
    return {"stop_reason": "stop_sequence" if stop else _STOP_REASONS[finish], "stop_sequence": stop}


def _usage(used: Usage, answer: int) -> dict[str, Any]:
    return {
        "input_tokens": used.prompt - used.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": used.cached,
        "output_tokens": answer,
        "service_tier": "standard",
    }


def _block(part: Part, signature: str) -> dict[str, Any]:
    """A whole block.  Arguments that were cut, and are no JSON, are given as the text that they are."""
    if isinstance(part, TextDelta) and part.reasoning:
        return {"type": "thinking", "thinking": part.text, "signature": signature}
    if isinstance(part, TextDelta):
        return {"type": "text", "text": part.text}
    try:
        arguments = json.loads(part.arguments or "{}")
    except ValueError:
        return {"type": "text", "text": f"{part.name}({part.arguments}"}
    return {"type": "tool_use", "id": part.id, "name": part.name, "input": arguments}


async def stream(reply: Reply, message_id: str, model: str) -> AsyncGenerator[bytes]:
    """Events; closing the iterator cancels the request."""
    blocks = Blocks(message_id)
    begun, ending = False, _ending("stop", None)
    events = reply.events()
    try:
        async for found in events:
            data = []
            if not begun:
                # Not before: only now is it known what was cached.
                begun = True
                start = {"type": "message_start", "message": _message(message_id, model, reply, None)}
                data.append(sse(start, "message_start"))
            for event in found:
                if isinstance(event, End):
                    ending = _ending(event.finish, event.stop)
                    continue
                for part in event.parts:
                    data += blocks.add(part)
            yield b"".join(data)
    finally:
        await events.aclose()
    yield b"".join(blocks.end())
    usage = _usage(reply.usage, reply.usage.completion)
    yield sse({"type": "message_delta", "delta": ending, "usage": usage}, "message_delta")
    yield sse({"type": "message_stop"}, "message_stop")


class Blocks:
    """Parts of an answer -> events of its content blocks, one open at a time."""

    def __init__(self, signature: str) -> None:
        self._signature = signature
        self._index = -1
        self._open: str | int | None = None

    def add(self, part: Part) -> list[bytes]:
        kind = part.index if isinstance(part, CallDelta) else "thinking" if part.reasoning else "text"
        events = []
        if kind != self._open:
            events += self.end()
            self._index += 1
            self._open = kind
            events.append(self._event("content_block_start", content_block=_empty(part)))
        if isinstance(part, CallDelta):
            if part.arguments:
                events.append(self._delta(type="input_json_delta", partial_json=part.arguments))
        elif part.reasoning:
            events.append(self._delta(type="thinking_delta", thinking=part.text))
        else:
            events.append(self._delta(type="text_delta", text=part.text))
        return events

    def end(self) -> list[bytes]:
        """Close the block that is open."""
        if self._open is None:
            return []
        events = []
        if self._open == "thinking":
            events.append(self._delta(type="signature_delta", signature=self._signature))
        self._open = None
        return [*events, self._event("content_block_stop")]

    def _delta(self, **delta: str) -> bytes:
        return self._event("content_block_delta", delta=delta)

    def _event(self, name: str, **more: Any) -> bytes:
        return sse({"type": name, "index": self._index, **more}, name)


def _empty(part: Part) -> dict[str, Any]:
    if isinstance(part, CallDelta):
        return {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
    if part.reasoning:
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}
