"""`/v1/chat/completions`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from fourfold.engine.logprobs import TokenLogprob
from fourfold.engine.request import Request as EngineRequest
from fourfold.errors import RequestError
from fourfold.protocol import CallDelta, TextDelta, Turn, convert
from fourfold.server.answering import (
    End,
    Event,
    Piece,
    Reply,
    Usage,
    Whole,
    asked,
    constraint_of,
    gathered,
)
from fourfold.server.backend import Server
from fourfold.server.errors import HOLE, Document, Form
from fourfold.server.logprobs import described
from fourfold.server.request import (
    Body,
    SamplingFields,
    call_of,
    check_count,
    check_model,
    server_of,
)
from fourfold.server.stream import sse, streamed, unless_gone

router = APIRouter(tags=["OpenAI"])


class TextPart(Body):
    """The one kind of content part that V4 reads."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    name: str
    arguments: str


class ToolCall(Body):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class Message(Body):
    """prefix: the model goes on with this message, the last.  name does not reach the prompt."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    prefix: bool | None = None
    name: str | None = None
    refusal: None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)
    audio: None = None
    function_call: None = None

    def body(self) -> dict[str, Any]:
        """The message as the publisher's library reads it."""
        own = self.given("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "prefix")
        for call in own.get("tool_calls", ()):
            call.pop("index", None)
        return own | {"role": "system"} if self.role == "developer" else own


class Function(Body):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class Thinking(Body):
    type: Literal["enabled", "disabled"]


class JsonSchema(Body):
    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema", "regex"]
    json_schema: JsonSchema | None = None
    regex: str | None = None


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


Stop = str | Annotated[list[str], Field(max_length=16)]


class ChatRequest(SamplingFields):
    """Fields that cannot change an answer are accepted; all others that are not here are refused.

    return_token_ids: vLLM's, the ids of the prompt and of what is said.
    """

    model: str
    messages: list[Message]
    thinking: Thinking | None = None
    reasoning_effort: str | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    stop: Stop | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    store: Literal[False] | None = None

    def turn(self, server: Server) -> Turn:
        """RequestError: the conversation is refused."""
        names = ("thinking", "reasoning_effort", "tools", "tool_choice", "response_format", "stop")
        body = self.given(*names) | {"messages": [message.body() for message in self.messages]}
        return convert("chat", body, format=server.config.format, thinking=server.config.thinking)

    def engine_request(self, server: Server, turn: Turn) -> EngineRequest:
        """RequestError: a value is not allowed."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs is set without logprobs; set logprobs to true")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise RequestError("max_tokens and max_completion_tokens are both set; send one of them")
        return EngineRequest(
            prompt=turn.prompt.encode(server.engine.tokenizer),
            max_tokens=self.max_completion_tokens or self.max_tokens,
            min_tokens=self.min_tokens or 0,
            n=self.n or 1,
            sampling=self.sampling(server),
            stop_tokens=self.stop_token_ids or (),
            ignore_eos=bool(self.ignore_eos),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            adapter=server.config.adapter_of(self.model),
            constraint=constraint_of(server, turn),
        )


@router.post("/v1/chat/completions", operation_id="chat", response_model=None)
async def chat(body: ChatRequest, request: Request) -> Response:
    """An answer to a conversation."""
    server, call = server_of(request), call_of(request)
    check_model(server, body.model)
    check_count(server, body.messages)
    turn = await run_in_threadpool(body.turn, server)
    wanted = await run_in_threadpool(body.engine_request, server, turn)
    if server.config.log_prompts:
        call.texts.append(turn.prompt.text)
    chunks = Chunks(server, body)

    reply = Reply(
        server,
        call,
        wanted,
        turn,
        one_call=body.parallel_tool_calls is False,
        ids=bool(body.return_token_ids),
    )
    if body.stream:
        return await streamed(
            server, call, reply, chunks.stream(reply), lambda error: sse(error.document(call.path))
        )

    async def whole() -> dict[str, Any]:
        async with asked(reply):
            return chunks.whole(reply, await gathered(reply))

    return Document(await unless_gone(request, whole()))


class Chunks:
    """The answer in the words of Chat Completions."""

    def __init__(self, server: Server, body: ChatRequest) -> None:
        self._tokenizer = server.engine.tokenizer
        self._body = body
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": None,
        }
        self._begun: set[int] = set()
        self._forms: dict[tuple[int, bool], Form] = {}
        """Of chunks that hold nothing but text."""

    def whole(self, reply: Reply, wholes: Sequence[Whole]) -> dict[str, Any]:
        choices = []
        for index, whole in enumerate(wholes):
            message: dict[str, Any] = {"role": "assistant", "content": whole.content}
            if reply.thinking:
                message["reasoning_content"] = whole.reasoning
            if calls := whole.calls:
                message["content"] = whole.content or None
                message["tool_calls"] = [_call(one) for one in calls]
            logprobs = None
            if self._body.logprobs:
                logprobs = self._logprobs(whole.logprobs, whole.reasoning_logprobs)
            choice = {"index": index, "message": message, "logprobs": logprobs, "finish_reason": whole.finish}
            if self._body.return_token_ids:
                choice["token_ids"] = whole.ids
            choices.append(choice)
        found = self._head | {"object": "chat.completion", "choices": choices, "usage": usage(reply.usage)}
        return found | self._prompt_ids(reply)

    async def stream(self, reply: Reply) -> AsyncGenerator[bytes]:
        """Events; closing the iterator cancels the request."""
        events = reply.events()
        try:
            async for found in events:
                yield b"".join(chunk for event in found for chunk in self._chunks(event, reply))
        finally:
            await events.aclose()
        options = self._body.stream_options
        if options is not None and options.include_usage:
            last = {"object": "chat.completion.chunk", "choices": [], "usage": usage(reply.usage)}
            yield sse(self._head | last)
        yield b"data: [DONE]\n\n"

    def _chunks(self, event: Event, reply: Reply) -> Iterator[bytes]:
        if event.index not in self._begun:
            prompt_ids = {} if self._begun else self._prompt_ids(reply)
            self._begun.add(event.index)
            yield self._chunk(event.index, {"role": "assistant", "content": ""}, **prompt_ids)
        if isinstance(event, End):
            yield self._chunk(event.index, {}, {"finish_reason": event.finish})
        else:
            yield from self._pieces(event)

    def _pieces(self, piece: Piece) -> list[bytes]:
        """One chunk for each part; the token itself and its log probability are in the last."""
        plain = not piece.logprobs and not piece.ids
        if plain and len(piece.parts) == 1 and isinstance(piece.parts[0], TextDelta):
            return [self._text(piece.index, piece.parts[0])]
        deltas = [_delta(part) for part in piece.parts] or [{}]
        logprobs = None
        if piece.logprobs:
            both = ((), piece.logprobs) if piece.reasoning else (piece.logprobs, ())
            logprobs = self._logprobs(*both)
        *before, last = deltas
        ids = {"token_ids": [*piece.ids]} if self._body.return_token_ids else {}
        chunks = [self._chunk(piece.index, delta) for delta in before]
        return [*chunks, self._chunk(piece.index, last, {"logprobs": logprobs, **ids})]

    def _text(self, index: int, part: TextDelta) -> bytes:
        form = self._forms.get((index, part.reasoning))
        if form is None:
            empty = self._chunk(index, _delta(TextDelta(HOLE, part.reasoning)))
            form = self._forms[index, part.reasoning] = Form(empty)
        return form.filled(part.text)

    def _chunk(
        self, index: int, delta: dict[str, Any], more: Mapping[str, Any] | None = None, /, **beside: Any
    ) -> bytes:
        """more: of the choice; beside: of the chunk."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **(more or {})}
        return sse(self._head | {"object": "chat.completion.chunk", "choices": [choice], **beside})

    def _prompt_ids(self, reply: Reply) -> dict[str, list[int]]:
        return {"prompt_token_ids": reply.answer.prompt_ids} if self._body.return_token_ids else {}

    def _logprobs(self, content: Sequence[TokenLogprob], reasoning: Sequence[TokenLogprob]) -> dict[str, Any]:
        found: dict[str, Any] = {"content": [described(one, self._tokenizer) for one in content]}
        if reasoning:
            found["reasoning_content"] = [described(one, self._tokenizer) for one in reasoning]
        return found | {"refusal": None}


def usage(used: Usage) -> dict[str, Any]:
    """The counts as OpenAI and DeepSeek name them."""
    return {
        "prompt_tokens": used.prompt,
        "completion_tokens": used.completion,
        "total_tokens": used.prompt + used.completion,
        "prompt_tokens_details": {"cached_tokens": used.cached},
        "completion_tokens_details": {"reasoning_tokens": used.reasoning},
        "prompt_cache_hit_tokens": used.cached,
        "prompt_cache_miss_tokens": used.prompt - used.cached,
    }


def _delta(part: TextDelta | CallDelta) -> dict[str, Any]:
    if isinstance(part, TextDelta):
        return {"reasoning_content" if part.reasoning else "content": part.text}
    if part.name:
        return {"tool_calls": [{"index": part.index, **_call(part)}]}
    return {"tool_calls": [{"index": part.index, "function": {"arguments": part.arguments}}]}


def _call(call: CallDelta) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
