"""`/v1/responses`.  Nothing is stored: what would need that is refused."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Discriminator, Field, Tag
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from fourfold.engine.request import Request as EngineRequest
from fourfold.errors import RequestError
from fourfold.protocol import CallDelta, Part, TextDelta, Turn, convert
from fourfold.server.answering import End, Finish, Reply, asked, constraint_of
from fourfold.server.backend import Server
from fourfold.server.errors import ApiError, Document
from fourfold.server.logprobs import described
from fourfold.server.request import Body, SamplingFields, call_of, check_count, check_model, server_of
from fourfold.server.stream import sse, streamed, unless_gone
from fourfold.tokenizer import Tokenizer

router = APIRouter(tags=["OpenAI"])


class InputPart(Body):
    """The kinds of content part that V4 reads."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = Field(default=None, max_length=0)
    logprobs: list[Any] | None = None


class Item(Body):
    id: str | None = None
    status: str | None = None


class MessageItem(Item):
    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputPart]
    phase: str | None = None


class ReasoningText(Body):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Item):
    """Reasoning is read from content; what is encrypted by others cannot be."""

    type: Literal["reasoning"]
    summary: list[Any] | None = None
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None


class CallItem(Item):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    namespace: str | None = Field(default=None, exclude=True)


class OutputItem(Item):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputPart]


def _kind(value: Any) -> str:
    found = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return found if isinstance(found, str) else "message"


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")],
    Discriminator(_kind),
]


class Tool(Body):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Namespace(Body):
    """Tools that belong together.  The model sees each under its own name; calls of them say `namespace`."""

    type: Literal["namespace"]
    name: str
    description: str | None = None
    tools: list[Tool]


class NamedTool(Body):
    type: Literal["function"]
    name: str


class Reasoning(Body):
    """summary: none is written; the reasoning itself is given."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class StreamOptions(Body):
    include_obfuscation: Literal[False] | None = None


Include = Literal["reasoning.encrypted_content", "message.output_text.logprobs"]


class ResponsesRequest(SamplingFields):
    """Fields that cannot change an answer are accepted; all others that are not here are refused."""

    model: str
    input: str | list[InputItem]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    tools: list[Annotated[Tool | Namespace, Field(discriminator="type")]] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    include: list[Include] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: dict[str, Any] | None = None
    client_metadata: dict[str, Any] | None = None
    user: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None

    def functions(self) -> Iterator[tuple[Tool, str | None]]:
        """All tools, and the namespaces of those that have one.  RequestError: two have one name."""
        known: set[str] = set()
        for one in self.tools or ():
            space = one.name if isinstance(one, Namespace) else None
            for tool in one.tools if isinstance(one, Namespace) else [one]:
                if tool.name in known:
                    raise RequestError(f"tools has two called {tool.name!r}; give one another name")
                known.add(tool.name)
                yield tool, space

    @property
    def logprobs(self) -> int | None:
        """How many most likely tokens are wanted with each of the text; None: not even that one's.

        RequestError: many, and none.
        """
        if self.include is None or "message.output_text.logprobs" not in self.include:
            if self.top_logprobs is not None:
                raise RequestError(
                    "top_logprobs is set and include has no message.output_text.logprobs; add it"
                )
            return None
        return self.top_logprobs or 0

    def turn(self, server: Server) -> Turn:
        """RequestError: the conversation is refused."""
        body = self.given("input", "instructions", "tool_choice", "text")
        if self.tools is not None:
            body["tools"] = [tool.given(*Tool.model_fields) for tool, _ in self.functions()]
        if self.reasoning is not None and self.reasoning.effort is not None:
            body["reasoning"] = {"effort": self.reasoning.effort}
        return convert("responses", body, format=server.config.format, thinking=server.config.thinking)

    def engine_request(self, server: Server, turn: Turn) -> EngineRequest:
        """RequestError: a value is not allowed."""
        return EngineRequest(
            prompt=turn.prompt.encode(server.engine.tokenizer),
            max_tokens=self.max_output_tokens,
            sampling=self.sampling(server),
            adapter=server.config.adapter_of(self.model),
            logprobs=self.logprobs,
            constraint=constraint_of(server, turn),
        )


@router.post("/v1/responses", operation_id="responses", response_model=None)
async def responses(body: ResponsesRequest, request: Request) -> Response:
    """An answer to a conversation."""
    server, call = server_of(request), call_of(request)
    check_model(server, body.model)
    if body.store:
        raise ApiError(400, "store is true, and this server stores nothing; send false", param="store")
    if isinstance(body.input, list):
        check_count(server, body.input)
    turn = await run_in_threadpool(body.turn, server)
    wanted = await run_in_threadpool(body.engine_request, server, turn)
    if server.config.log_prompts:
        call.texts.append(turn.prompt.text)
    output = Output(body, server.engine.tokenizer)

    reply = Reply(server, call, wanted, turn, one_call=body.parallel_tool_calls is False)
    if body.stream:
        return await streamed(server, call, reply, output.stream(reply), output.failed)

    async def whole() -> dict[str, Any]:
        async with asked(reply):
            async for _ in output.items(reply):
                pass
            return output.response(reply, output.finish)

    return Document(await unless_gone(request, whole()))


@router.api_route(
    "/v1/responses/{response_id:path}", methods=["GET", "DELETE", "POST"], include_in_schema=False
)
async def stored(response_id: str) -> Response:
    raise ApiError(404, f"there is no response {response_id!r}: this server stores none")


class Output:
    """Parts of an answer -> its items, and the events that tell of them.  One item is open at a time."""

    finish: Finish = "stop"

    def __init__(self, body: ResponsesRequest, tokenizer: Tokenizer) -> None:
        self._body = body
        self._spaces = {tool.name: space for tool, space in body.functions() if space is not None}
        self._tokenizer = tokenizer
        self._id = f"resp_{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._items: list[dict[str, Any]] = []
        self._open: Part | None = None
        self._pieces: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._untold: list[dict[str, Any]] = []
        """Of tokens whose text has not come yet."""
        self._room = 0
        """Bytes of the text beyond the tokens that were told, which may end in the middle of one."""
        self._events = 0

    async def stream(self, reply: Reply) -> AsyncGenerator[bytes]:
        """Events; closing the iterator cancels the request."""
        yield self._event("response.created", response=self.response(reply, None))
        yield self._event("response.in_progress", response=self.response(reply, None))
        items = self.items(reply)
        try:
            async for data in items:
                yield data
        finally:
            await items.aclose()
        name = "response.incomplete" if self.finish == "length" else "response.completed"
        yield self._event(name, response=self.response(reply, self.finish))

    async def items(self, reply: Reply) -> AsyncGenerator[bytes]:
        """The events of the items alone."""
        events = reply.events()
        try:
            async for found in events:
                data = []
                for event in found:
                    if isinstance(event, End):
                        self.finish = event.finish
                        continue
                    if not event.reasoning:
                        self._untold += [described(one, self._tokenizer) for one in event.logprobs]
                    for part in event.parts:
                        data += self._add(part)
                yield b"".join(data)
        finally:
            await events.aclose()
        yield b"".join(self._close())

    def failed(self, error: ApiError) -> bytes:
        """The event of an error that ends the stream."""
        code = error.code or "server_error"
        return self._event("error", code=code, message=error.message, param=error.param)

    def _add(self, part: Part) -> list[bytes]:
        """The events of one part."""
        events = []
        if self._open is None or not _alike(self._open, part):
            events += self._close()
            self._open = part
            item = _item(part, f"{self._id}_{len(self._items)}")
            if (space := self._spaces.get(item.get("name", ""))) is not None:
                item["namespace"] = space
            self._items.append(item)
            events.append(self._of_item("response.output_item.added", item=self._items[-1]))
            if isinstance(part, TextDelta):
                events.append(self._of_part("response.content_part.added", part=_content(part, "", ())))
        text = part.text if isinstance(part, TextDelta) else part.arguments
        if text:
            self._pieces.append(text)
            events.append(self._of_text(part, "delta", self._told(part), delta=text))
        return events

    def _told(self, part: Part) -> list[dict[str, Any]]:
        """Those whose text is in this part.  Tokens of calls have no place in this protocol."""
        if isinstance(part, CallDelta):
            self._untold = []
            return []
        self._room += len(part.text.encode("utf-8", "surrogatepass"))
        count = 0
        while self._room > 0 and count < len(self._untold):
            self._room -= len(self._untold[count]["bytes"])
            count += 1
        told, self._untold = self._untold[:count], self._untold[count:]
        self._logprobs += told
        return told

    def _close(self) -> list[bytes]:
        """End the item that is open."""
        part, text = self._open, "".join(self._pieces)
        if part is None:
            return []
        logprobs = self._logprobs
        self._open, self._pieces, self._logprobs, self._room = None, [], [], 0
        done = self._items[-1] | {"status": "completed"}
        self._items[-1] = done
        if isinstance(part, CallDelta):
            done["arguments"] = text
            events = [self._of_text(part, "done", (), arguments=text)]
        else:
            content = _content(part, text, logprobs)
            done["content"] = [content]
            events = [
                self._of_text(part, "done", logprobs, text=text),
                self._of_part("response.content_part.done", part=content),
            ]
        return [*events, self._of_item("response.output_item.done", item=done)]

    def response(self, reply: Reply, finish: Finish | None) -> dict[str, Any]:
        """The response object; finish None: while it runs."""
        body, used = self._body, reply.usage
        status = "in_progress" if finish is None else "incomplete" if finish == "length" else "completed"
        usage = {
            "input_tokens": used.prompt,
            "input_tokens_details": {"cached_tokens": used.cached},
            "output_tokens": used.completion,
            "output_tokens_details": {"reasoning_tokens": used.reasoning},
            "total_tokens": used.prompt + used.completion,
        }
        sampling = reply.answer.request.sampling
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None if finish is None else int(time.time()),
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if finish == "length" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": body.model,
            "output": list(self._items),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
            "store": False,
            "temperature": sampling.temperature,
            "text": body.given("text").get("text") or {"format": {"type": "text"}},
            "tool_choice": body.given("tool_choice").get("tool_choice", "auto"),
            "tools": body.given("tools").get("tools", []),
            "top_logprobs": body.top_logprobs or 0,
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": None if finish is None else usage,
            "user": body.user,
            "metadata": body.metadata or {},
        }

    def _of_text(self, part: Part, what: str, logprobs: Sequence[dict[str, Any]], **more: Any) -> bytes:
        name = "function_call_arguments"
        if isinstance(part, TextDelta):
            name = "reasoning_text" if part.reasoning else "output_text"
            more["content_index"] = 0
            if not part.reasoning:
                more["logprobs"] = list(logprobs)
        return self._of_item(f"response.{name}.{what}", item_id=self._items[-1]["id"], **more)

    def _of_part(self, name: str, **more: Any) -> bytes:
        return self._of_item(name, item_id=self._items[-1]["id"], content_index=0, **more)

    def _of_item(self, name: str, **more: Any) -> bytes:
        return self._event(name, output_index=len(self._items) - 1, **more)

    def _event(self, name: str, **more: Any) -> bytes:
        self._events += 1
        return sse({"type": name, "sequence_number": self._events - 1, **more}, name)


def _alike(one: Part, other: Part) -> bool:
    """Whether both belong to one item."""
    if isinstance(one, CallDelta) or isinstance(other, CallDelta):
        return isinstance(one, CallDelta) and isinstance(other, CallDelta) and one.index == other.index
    return one.reasoning == other.reasoning


def _item(part: Part, item_id: str) -> dict[str, Any]:
    """An item that has just begun."""
    if isinstance(part, CallDelta):
        call = {"call_id": part.id, "name": part.name, "arguments": ""}
        return {"type": "function_call", "id": f"fc_{item_id}", "status": "in_progress", **call}
    if part.reasoning:
        reasoning: dict[str, Any] = {"summary": [], "content": [], "encrypted_content": None}
        return {"type": "reasoning", "id": f"rs_{item_id}", "status": "in_progress", **reasoning}
    message = {"role": "assistant", "content": []}
    return {"type": "message", "id": f"msg_{item_id}", "status": "in_progress", **message}


def _content(part: TextDelta, text: str, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if part.reasoning:
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "annotations": [], "logprobs": list(logprobs), "text": text}
