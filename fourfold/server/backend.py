"""The engine as the server knows it: somewhere else, and replaced when it ends before its time."""

from __future__ import annotations

import asyncio
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field, replace

from fourfold.config import ModelConfig
from fourfold.engine.engine import EngineStats
from fourfold.engine.limits import Counters
from fourfold.engine.request import Request, check_ids, prompt_ids
from fourfold.errors import FourfoldError
from fourfold.server.access import Quota
from fourfold.server.calls import Call, Log
from fourfold.server.errors import ApiError, api_error
from fourfold.server.hosts import Host
from fourfold.server.metrics import Metrics
from fourfold.server.settings import ServerConfig
from fourfold.server.supervisor import Link, State, Supervisor
from fourfold.server.ticket import MOST_TRIES, Ticket
from fourfold.tokenizer import Tokenizer
from fourfold.worker.wire import (
    Cancel,
    EngineFault,
    Message,
    News,
    Taken,
    chunk_of,
    error_of,
    layers_of,
    logprobs_of,
    stats_of,
)

_NO_STATS = EngineStats(0, 0, 0, 0, 0, 0, 0, 0, Counters())


class Backend:
    """Asks the engine of a host, from one event loop: a call from another one starts an engine anew.

    Requests that an engine leaves behind go on where they were with the next one.
    """

    def __init__(self, host: Host, tokenizer: Tokenizer, model: ModelConfig, log: Log | None = None) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.log = log or Log()
        self._host = host
        self._numbers = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: asyncio.Task[None] | None = None
        """Where nobody has called `start`: the first request of a loop does, and others wait for it."""
        self._running: asyncio.Task[None] | None = None
        self._reset()

    def _reset(self) -> None:
        self._supervisor = Supervisor(
            self._host,
            self.log,
            heard=self._heard,
            began=self._began,
            ended=self._ended,
            gave_up=self._gave_up,
        )
        self._tickets: dict[int, Ticket] = {}
        self._link: Link | None = None
        self._row: list[object] = []
        self._sent = self._taken = 0
        """Requests that the engine of now was sent, and those of them that its stats know of."""

    @property
    def state(self) -> State:
        """loading, ready, restarting or failed, as in Supervisor."""
        return self._supervisor.state

    @property
    def restarts(self) -> int:
        return self._supervisor.restarts

    @property
    def reason(self) -> str:
        """How the last engine that ended did."""
        return self._supervisor.reason

    async def start(self) -> None:
        """Have an engine that is ready.  The error that it could not start with."""
        self._reset()
        self._loop = asyncio.get_running_loop()
        started = self._loop.create_future()
        self._running = self._loop.create_task(self._supervisor.run(started))
        await started

    async def submit(self, request: Request) -> Ticket:
        """Give it a request; returns when it has taken it, which waits for a step to end.

        RequestError: the engine refuses it.  ApiError 503: there is no engine yet, or none any more.
        """
        if self._loop is not (loop := asyncio.get_running_loop()):
            self._loop, self._opened = loop, loop.create_task(self.start())
        if self._opened is not None:
            await asyncio.shield(self._opened)
        self._check()
        check_ids(request, self.model)
        ticket = Ticket(self._numbers, request, prompt_ids(request.prompt, self.tokenizer, self.model))
        self._numbers += 1
        self._tickets[ticket.number] = ticket
        self._send(ticket)
        try:
            await ticket.taken
        except BaseException:
            self.cancel(ticket)
            raise
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Give a request up: the step that runs is the last that it takes part in."""
        if self._tickets.pop(ticket.number, None) is not None:
            ticket.end(None)
            if self._link is not None:
                self._link.send(Cancel(ticket.number))

    def drop(self, ticket: Ticket, choice: int) -> None:
        """Give up one of several choices; a next engine that computes it again is not told."""
        if self._link is not None:
            self._link.send(Cancel(ticket.number, choice))

    def stats(self) -> EngineStats:
        """Of the last step; what was asked for since then waits."""
        known = stats_of(self._row) if self._row else _NO_STATS
        if self._link is None:
            return replace(known, running=0, waiting=len(self._tickets))
        return replace(known, waiting=known.waiting + self._sent - self._taken)

    async def close(self) -> None:
        """End the engine; what still runs is given up."""
        if self._running is None:
            return
        if self._link is None:
            self._host.kill()
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running
        await asyncio.to_thread(self._host.ended)

    def _check(self) -> None:
        if self.state == "loading":
            raise ApiError(503, "the model is being loaded; try again later", retry_after=5)
        if self.state == "failed":
            raise self._lost()

    def _lost(self) -> ApiError:
        return ApiError(503, f"the engine has ended and cannot be started again: {self.reason}")

    def _send(self, ticket: Ticket) -> None:
        if self._link is not None:
            self._sent += 1
            self._link.send(ticket.again())

    # What the supervisor says.

    def _began(self, link: Link) -> None:
        self._link = link
        self._sent = self._taken = 0
        self._row = []
        for ticket in self._tickets.values():
            self._send(ticket)

    def _ended(self) -> None:
        self._link = None
        for ticket in list(self._tickets.values()):
            ticket.tries += 1
            if ticket.tries >= MOST_TRIES:
                told = f"{ticket.tries} engines have ended while this request ran; it is not tried again"
                self._end(ticket, ApiError(500, told))

    def _gave_up(self) -> None:
        for ticket in list(self._tickets.values()):
            self._end(ticket, self._lost())

    def _end(self, ticket: Ticket, error: Exception | None) -> None:
        del self._tickets[ticket.number]
        ticket.end(error)

    def _heard(self, message: Message) -> None:
        if isinstance(message, News):
            self._news(message)
        elif isinstance(message, Taken):
            ticket = self._tickets.get(message.number)
            if ticket is None:
                return  # who asked has gone
            if message.fault is not None:
                self._end(ticket, error_of(message.fault))
            elif not ticket.taken.done():
                ticket.taken.set_result(None)
        else:
            raise AssertionError(message)

    def _news(self, news: News) -> None:
        tickets = self._tickets
        self._row, self._taken = news.stats, news.taken
        for number, cached, seconds in news.begun:
            if number in tickets:
                tickets[number].began(cached, seconds)
        for number, rows in news.scored:
            if number in tickets:
                tickets[number].prompt_logprobs += logprobs_of(rows)
        touched = {}
        for row in news.chunks:
            if (ticket := tickets.get(row[0])) is not None:
                ticket.add(chunk_of(row))
                touched[ticket.number] = ticket
        for ticket in touched.values():
            ticket.tell()
        for number, rows in news.layers:
            if number in tickets:
                tickets[number].layers = layers_of(rows)
        for number, fault in news.ended:
            if number in tickets:
                self._end(tickets[number], None if fault is None else error_of(fault))


@dataclass
class Server:
    """One model that is served.

    draining: running requests end, new ones are refused.  inspecting: an inspection runs.
    """

    engine: Backend
    config: ServerConfig
    started: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    inspecting: bool = False

    def __post_init__(self) -> None:
        self.log = self.engine.log
        self.model = self.engine.model
        self.metrics = Metrics(self.config.name, self.engine)
        self.quota = Quota(self.config.key_running, self.config.key_rate)

    def scope(self, call: Call) -> str:
        """Of the prefixes that a request may find in the cache."""
        return call.key if self.config.cache_scope == "key" else ""

    def failed(self, call: Call, error: Exception) -> ApiError:
        """What the client of a call is told of what ended it; the log gets what holds none of its texts."""
        told = api_error(error)
        quotes = told.status in (400, 404, 422)
        call.error = told.code or "invalid_request_error" if quotes else told.message
        if self.config.log_prompts:
            call.error = told.message
        if isinstance(error, EngineFault):
            self.log.write("failure", id=call.id, type=error.told.name, where=error.told.where)
        elif not isinstance(error, FourfoldError):
            frames = traceback.extract_tb(error.__traceback__)
            where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
            self.log.write("failure", id=call.id, type=type(error).__name__, where=where)
        return told
