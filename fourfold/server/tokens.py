"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from fourfold.errors import RequestError, TokenizerError
from fourfold.protocol import convert
from fourfold.server.backend import Server
from fourfold.server.chat import Message, Thinking, Tool
from fourfold.server.errors import Document
from fourfold.server.request import Body, check_count, check_model, server_of

router = APIRouter(tags=["tokens"])


class TokenizeRequest(Body):
    """A text, or a conversation as in Chat Completions.

    add_special_tokens: put the beginning-of-sentence token in front of the text, as /v1/completions does.
    """

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    thinking: Thinking | None = None
    reasoning_effort: str | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False

    def text_and_ids(self, server: Server) -> tuple[str, list[int]]:
        """RequestError: there is neither a text nor a conversation, or both, or it is refused."""
        tokenizer = server.engine.tokenizer
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("send either prompt or messages")
        if self.messages is None:
            text = self.prompt or ""
            return text, [server.model.bos_token_id] * self.add_special_tokens + tokenizer.encode(text)
        body = self.given("tools", "thinking", "reasoning_effort")
        body["messages"] = [message.body() for message in self.messages]
        turn = convert("chat", body, format=server.config.format, thinking=server.config.thinking)
        return turn.prompt.text, turn.prompt.encode(tokenizer)


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: list[int] = Field(max_length=1 << 21)


@router.post("/tokenize", response_model=None)
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """The tokens of a text or a conversation, and the prompt that they are of."""
    server = server_of(request)
    if body.model is not None:
        check_model(server, body.model)
    check_count(server, body.messages or [])
    text, ids = await run_in_threadpool(body.text_and_ids, server)
    found: dict[str, Any] = {
        "count": len(ids),
        "max_model_len": server.model.max_position_embeddings,
        "tokens": ids,
        "prompt": text,
    }
    if body.return_token_strs:
        found["token_strs"] = [server.engine.tokenizer.decode([token]) for token in ids]
    return Document(found)


@router.post("/detokenize", response_model=None)
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of tokens."""
    server = server_of(request)
    if body.model is not None:
        check_model(server, body.model)
    try:
        text = await run_in_threadpool(server.engine.tokenizer.decode, body.tokens)
    except TokenizerError:
        known = server.engine.tokenizer.vocab_size
        raise RequestError(
            f"tokens holds an id without a meaning; allowed: those from 0 to {known - 1}"
        ) from None
    return Document({"prompt": text})
