"""`/v1/completions`: texts continued as they are, or filled in."""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from fourfold.engine.logprobs import TokenLogprob
from fourfold.engine.request import Request as EngineRequest
from fourfold.errors import RequestError
from fourfold.protocol import TextDelta
from fourfold.server.answering import End, Event, Piece, Reply, Usage, Whole, asked, gathered
from fourfold.server.backend import Server
from fourfold.server.chat import Stop, StreamOptions, usage
from fourfold.server.errors import ApiError, Document
from fourfold.server.logprobs import finite, token_text
from fourfold.server.request import SamplingFields, call_of, check_model, server_of
from fourfold.server.stream import sse, streamed, unless_gone
from fourfold.tokenizer import Tokenizer

router = APIRouter(tags=["OpenAI"])

_FILL = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")
_MOST_PROMPTS = 64

Ids = Annotated[list[int], Field(min_length=1)]


class CompletionRequest(SamplingFields):
    """Fields that cannot change an answer are accepted; all others that are not here are refused.

    suffix: the answer goes between the prompt and this.  echo: the prompt in front of the answer.
    max_tokens: 16 unless given, as OpenAI has it; 0 with echo and logprobs, for those of the prompt alone.
    """

    model: str
    prompt: str | Ids | Annotated[list[str], Field(min_length=1)] | Annotated[list[Ids], Field(min_length=1)]
    suffix: str | None = None
    echo: bool | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    seed: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: Stop | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    def prompts(self, server: Server) -> list[Prompt]:
        """RequestError: what is asked for cannot be."""
        ids = [one for one in self.prompt if isinstance(one, int)]
        given: Sequence[str | list[int]] = [self.prompt] if isinstance(self.prompt, str) else [ids]
        if not isinstance(self.prompt, str) and not ids:
            given = [one for one in self.prompt if not isinstance(one, int)]
        if len(given) > _MOST_PROMPTS:
            raise RequestError(f"prompt has {len(given)} texts; allowed: {_MOST_PROMPTS}")
        if self.best_of not in (None, self.n or 1):
            raise RequestError(f"best_of is {self.best_of}; allowed: n, which is {self.n or 1}")
        if self.suffix is not None and self.echo:
            raise RequestError("echo is set with suffix; send one of them")
        return [self._prompt(one, server) for one in given]

    def _prompt(self, given: str | list[int], server: Server) -> Prompt:
        tokenizer = server.engine.tokenizer
        if isinstance(given, list):
            if self.suffix is not None:
                raise RequestError("suffix is set with token ids; send the prompt as a text")
            if outside := [token for token in given if not 0 <= token < tokenizer.vocab_size]:
                raise RequestError(
                    f"prompt holds token id {outside[0]}; allowed: 0 to {tokenizer.vocab_size - 1}"
                )
            return Prompt(given, 0)
        first = [server.model.bos_token_id]
        if self.suffix is None:
            return Prompt(first + tokenizer.encode(given), 1)
        if any(mark not in tokenizer.special_ids for mark in _FILL):
            raise RequestError("suffix is set, and this model's tokenizer has no marks for it; remove it")
        begin, hole, end = (tokenizer.token_id(mark) for mark in _FILL)
        ids = [begin, *tokenizer.encode(given), hole, *tokenizer.encode(self.suffix), end]
        return Prompt(first + ids, 1)

    def engine_request(self, server: Server, ids: Sequence[int]) -> EngineRequest:
        """RequestError: a value is not allowed."""
        return EngineRequest(
            prompt=ids,
            max_tokens=16 if self.max_tokens is None else self.max_tokens,
            min_tokens=self.min_tokens or 0,
            n=self.n or 1,
            sampling=self.sampling(server),
            stop=self.stop or (),
            stop_tokens=self.stop_token_ids or (),
            ignore_eos=bool(self.ignore_eos),
            logprobs=self.logprobs,
            prompt_logprobs=self.logprobs if self.echo else None,
            adapter=server.config.adapter_of(self.model),
        )


@dataclass(frozen=True)
class Prompt:
    """unseen: of its first tokens, that are not the client's."""

    ids: list[int]
    unseen: int


@router.post("/v1/completions", operation_id="completions", response_model=None)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continuations of texts."""
    server, call = server_of(request), call_of(request)
    check_model(server, body.model)
    prompts = await run_in_threadpool(body.prompts, server)
    if len(prompts) * (body.n or 1) > server.config.choices:
        raise ApiError(422, f"n times prompts is too many; allowed: {server.config.choices}", param="n")
    if server.config.log_prompts:
        call.texts += [server.engine.tokenizer.decode(prompt.ids) for prompt in prompts]
    wanted = [body.engine_request(server, prompt.ids) for prompt in prompts]
    texts = Texts(body, prompts, server.engine.tokenizer)
    if body.stream:
        if len(prompts) > 1:
            raise RequestError("prompt has many texts with stream; send them one by one")
        reply = Reply(server, call, wanted[0])
        return await streamed(
            server, call, reply, texts.stream(reply), lambda error: sse(error.document(call.path))
        )

    async def one(asked_for: EngineRequest) -> tuple[Reply, list[Whole]]:
        async with asked(Reply(server, call, asked_for)) as reply:
            return reply, await gathered(reply)

    async def all_of_them() -> dict[str, Any]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(asked_for)) for asked_for in wanted]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return texts.whole([task.result() for task in tasks])

    return Document(await unless_gone(request, all_of_them()))


class Texts:
    """Answers in the words of the Completions protocol."""

    def __init__(self, body: CompletionRequest, prompts: Sequence[Prompt], tokenizer: Tokenizer) -> None:
        self._body = body
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
        }

    def whole(self, answers: Sequence[tuple[Reply, list[Whole]]]) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        used = Usage()
        for prompt, (reply, wholes) in zip(self._prompts, answers, strict=True):
            used.prompt += reply.usage.prompt
            used.cached += reply.usage.cached
            used.completion += reply.usage.completion
            for whole in wholes:
                begin, echoed = self._echo(prompt, reply)
                logprobs = self._logprobs([*echoed, *whole.logprobs], 0)
                text = begin + whole.content
                choices.append(self._choice(len(choices), text, logprobs, whole.finish))
        return self._head | {"choices": choices, "usage": usage(used)}

    async def stream(self, reply: Reply) -> AsyncGenerator[bytes]:
        """Events; closing the iterator cancels the request."""
        offsets: dict[int, int] = {}
        events = reply.events()
        try:
            async for found in events:
                yield b"".join(data for event in found for data in self._chunks(event, reply, offsets))
        finally:
            await events.aclose()
        options = self._body.stream_options
        if options is not None and options.include_usage:
            yield sse(self._head | {"choices": [], "usage": usage(reply.usage)})
        yield b"data: [DONE]\n\n"

    def _chunks(self, event: Event, reply: Reply, offsets: dict[int, int]) -> Iterator[bytes]:
        """offsets: where the next text of each choice begins."""
        if event.index not in offsets:
            begin, echoed = self._echo(self._prompts[0], reply)
            offsets[event.index] = len(begin)
            if begin:
                yield self._event(event.index, begin, self._logprobs(echoed, 0))
        if isinstance(event, End):
            yield self._event(event.index, "", None, event.finish)
            return
        text = _text(event)
        logprobs = self._logprobs(event.logprobs, offsets[event.index])
        offsets[event.index] += len(text)
        yield self._event(event.index, text, logprobs)

    def _event(self, index: int, text: str, logprobs: Any, finish: str | None = None) -> bytes:
        return sse(self._head | {"choices": [self._choice(index, text, logprobs, finish)]})

    def _choice(self, index: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _echo(self, prompt: Prompt, reply: Reply) -> tuple[str, list[TokenLogprob]]:
        """The prompt's text and log probabilities, where they are wanted.  The very first token has none."""
        if not self._body.echo:
            return "", []
        text = self._tokenizer.decode(prompt.ids[prompt.unseen :])
        found = reply.answer.prompt_logprobs[prompt.unseen :]
        return text, [one or TokenLogprob(prompt.ids[0], math.nan) for one in found]

    def _logprobs(self, found: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        tokens = [token_text(one.token, self._tokenizer) for one in found]
        offsets = list(itertools.accumulate(map(len, tokens), initial=offset))[: len(tokens)]
        return {
            "tokens": tokens,
            "token_logprobs": [None if math.isnan(one.logprob) else finite(one.logprob) for one in found],
            "top_logprobs": [
                {token_text(token, self._tokenizer): finite(logprob) for token, logprob in one.top} or None
                for one in found
            ],
            "text_offset": offsets,
        }


def _text(piece: Piece) -> str:
    return "".join(part.text for part in piece.parts if isinstance(part, TextDelta))
