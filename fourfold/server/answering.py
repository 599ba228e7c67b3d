"""From a turn to its answers: asks the engine, reads what comes, counts it.  Protocols render the events."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from fourfold.engine.answer import Chunk, FinishReason
from fourfold.engine.constraint import Constraint
from fourfold.engine.logprobs import TokenLogprob
from fourfold.engine.request import Request
from fourfold.protocol import TOOL_MARK, AnswerParser, CallDelta, Part, TextDelta, Turn, joined
from fourfold.server.backend import Server
from fourfold.server.calls import Call
from fourfold.server.errors import ApiError
from fourfold.server.ticket import Ticket

Finish = Literal["stop", "length", "tool_calls"]


@dataclass
class Usage:
    """Tokens of a request: of its prompt, of them cached, of all its answers, of them reasoning."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0


@dataclass(frozen=True)
class Piece:
    """What one token added to choice `index`.  reasoning: the token is one of reasoning; ids: its own."""

    index: int
    parts: Sequence[Part]
    logprobs: Sequence[TokenLogprob] = ()
    reasoning: bool = False
    ids: Sequence[int] = ()


@dataclass(frozen=True)
class End:
    """Choice `index` ends.  stop: the stop string that ended it."""

    index: int
    finish: Finish
    stop: str | None = None


Event = Piece | End


class Reply:
    """The answers to one request, which is the engine's from `ask` on, until `events` end or `close`.

    turn: how the text is read; None: it is content as it comes.  one_call: an answer ends before its
    second tool call.  ids: every token is told, those without a text too.  usage: so far.
    thinking: answers have reasoning.
    """

    answer: Ticket

    def __init__(
        self,
        server: Server,
        call: Call,
        request: Request,
        turn: Turn | None = None,
        *,
        one_call: bool = False,
        ids: bool = False,
    ) -> None:
        self.usage = Usage()
        self.thinking = turn is not None and turn.stage.thinking
        self._server = server
        self._call = call
        self._one_call = one_call
        self._ids = ids
        self._request = request
        self._choices = [_Choice(turn.parser() if turn is not None else None) for _ in range(request.n)]
        self._began = time.perf_counter()

    async def ask(self) -> None:
        """Give the request to the engine; a new constraint takes a while.

        ApiError, RequestError: it cannot be served.
        """
        server, request = self._server, self._request
        config, metrics = server.config, server.metrics
        admit(server)
        if request.n > config.choices:
            raise ApiError(422, f"n is {request.n}; allowed: at most {config.choices}", param="n")
        scope, label = server.scope(self._call), self._call.label()
        self.answer = await server.engine.submit(replace(config.bounded(request), scope=scope, label=label))
        self.usage.prompt = len(self.answer.prompt_ids)
        self._call.prompt_tokens += self.usage.prompt
        metrics.prompt_tokens.inc(self.usage.prompt)
        metrics.prompt_sizes.observe(self.usage.prompt)

    async def events(self) -> AsyncGenerator[list[Event]]:
        """The events of all choices, those together that come together.  Closing the iterator cancels the
        request.

        FourfoldError: what ended this request.
        """
        chunks = self.answer.chunks()
        try:
            async for found in chunks:
                yield list(self._read(found))
                if all(one.ended for one in self._choices):
                    break
        finally:
            self.close()
            self._call.completion_tokens += self.usage.completion
        self._server.metrics.whole.observe(time.perf_counter() - self._began)

    def _read(self, chunks: Sequence[Chunk]) -> Iterator[Event]:
        """What these chunks add."""
        call, usage = self._call, self.usage
        if usage.cached == 0:
            usage.cached = self.answer.cached_tokens
            call.cached_tokens += usage.cached
        for chunk in chunks:
            choice = self._choices[chunk.index]
            if choice.ended:
                continue
            self._count(choice, len(chunk.ids))
            reasoning = choice.parser is not None and choice.parser.reasoning
            parts = choice.read(chunk.text)
            if reasoning:
                usage.reasoning += len(chunk.ids)
                call.reasoning_tokens += len(chunk.ids)
            if chunk.finish_reason is not None:
                parts += choice.finish(complete=chunk.finish_reason == "stop")
            if self._one_call:
                parts = choice.first_call(parts)
            ids = chunk.ids if self._ids else ()
            if parts or chunk.logprobs or ids:
                yield Piece(chunk.index, parts, chunk.logprobs, reasoning, ids)
            if chunk.finish_reason is not None or choice.over:
                stop = chunk.stop_reason if isinstance(chunk.stop_reason, str) else None
                yield self._end(chunk.index, choice, chunk.finish_reason, stop)
                if chunk.finish_reason is None and len(self._choices) > 1:
                    self._server.engine.drop(self.answer, chunk.index)

    def close(self) -> None:
        """Give it up, if it has begun and not ended."""
        if hasattr(self, "answer"):
            self._server.engine.cancel(self.answer)

    def _count(self, choice: _Choice, tokens: int) -> None:
        metrics, now = self._server.metrics, time.perf_counter()
        if not tokens:
            return
        if self.usage.completion == 0:
            metrics.first_token.observe(now - self._began)
            metrics.queue.observe(max(0.0, now - self._began - self.answer.prefill_seconds))
        elif choice.last:
            metrics.between_tokens.observe(now - choice.last)
        choice.last = now
        choice.tokens += tokens
        self.usage.completion += tokens
        metrics.answer_tokens.inc(tokens)

    def _end(self, index: int, choice: _Choice, reason: FinishReason | None, stop: str | None) -> End:
        choice.ended = True
        parser = choice.parser
        stopped = parser.stop_sequence if parser is not None else stop
        finish: Finish = "stop"
        if stopped is None and reason not in (None, "stop"):
            finish = "length"
        elif parser is not None and parser.called:
            finish = "tool_calls"
        self._call.finish.append(finish)
        self._server.metrics.finished(finish)
        self._server.metrics.answer_sizes.observe(choice.tokens)
        if self._server.config.log_prompts:
            self._call.texts.append(self._server.engine.tokenizer.decode(self.answer.ids[index]))
        return End(index, finish, stopped)


def admit(server: Server) -> None:
    """ApiError 503: it takes no more work, now or at all."""
    if server.draining:
        raise ApiError(503, "the server is shutting down; ask another one", retry_after=5)
    if server.engine.stats().waiting >= max(1, server.config.waiting):
        server.metrics.shed.inc()
        raise ApiError(
            503, "the server is overloaded: too many requests wait; try again later", retry_after=2
        )


@dataclass
class _Choice:
    """One text that is being written.  over: what comes after is not wanted."""

    parser: AnswerParser | None
    tokens: int = 0
    last: float = 0.0
    ended: bool = False
    over: bool = False

    def read(self, text: str) -> list[Part]:
        if self.parser is None:
            return [TextDelta(text)] if text else []
        parts = self.parser.push(text)
        self.over = self.parser.ended
        return parts

    def finish(self, *, complete: bool) -> list[Part]:
        return [] if self.parser is None else self.parser.finish(complete=complete)

    def first_call(self, parts: list[Part]) -> list[Part]:
        """Those before a second call, which ends the choice."""
        for place, part in enumerate(parts):
            if isinstance(part, CallDelta) and part.index > 0:
                self.over = True
                return parts[:place]
        return parts


@dataclass
class Whole:
    """One choice as a whole.  parts: in their order, neighbours of one kind as one.  ids: if asked for."""

    parts: list[Part] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reasoning_logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish = "stop"
    stop: str | None = None

    @property
    def content(self) -> str:
        return "".join(one.text for one in self.parts if isinstance(one, TextDelta) and not one.reasoning)

    @property
    def reasoning(self) -> str:
        return "".join(one.text for one in self.parts if isinstance(one, TextDelta) and one.reasoning)

    @property
    def calls(self) -> list[CallDelta]:
        return [one for one in self.parts if isinstance(one, CallDelta)]


@asynccontextmanager
async def asked(reply: Reply) -> AsyncGenerator[Reply]:
    """The same, when the engine has it; it is given up at the end."""
    try:
        await reply.ask()
        yield reply
    finally:
        reply.close()


async def gathered(reply: Reply) -> list[Whole]:
    """All choices of a reply that was asked for, when they have ended."""
    wholes = [Whole() for _ in reply.answer.ids]
    async for events in reply.events():
        for event in events:
            whole = wholes[event.index]
            if isinstance(event, End):
                whole.finish, whole.stop = event.finish, event.stop
                continue
            whole.parts.extend(event.parts)
            whole.ids.extend(event.ids)
            (whole.reasoning_logprobs if event.reasoning else whole.logprobs).extend(event.logprobs)
    for whole in wholes:
        whole.parts = joined(whole.parts)
    return wholes


def constraint_of(server: Server, turn: Turn) -> Constraint | None:
    """What the engine must hold the answer to."""
    if turn.constraint is None:
        return None
    kind, spec = turn.constraint
    if kind == "json":
        found = Constraint.json(json.loads(spec) if spec else None)
    elif kind == "regex":
        found = Constraint.regex(spec)
    elif kind == "tool_call" and TOOL_MARK not in server.engine.tokenizer.special_ids:
        return None  # a model that was never taught to call
    else:
        found = Constraint.tool_calls(json.loads(spec), opened=turn.stage.opened)
    return found.after_thinking() if turn.stage.reasoning else found
