"""The engine's side: between two steps it hears what is wanted, after each it tells what has come."""

from __future__ import annotations

import select
import socket
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from fourfold.engine.answer import Answer
from fourfold.engine.engine import Engine
from fourfold.engine.request import Request
from fourfold.errors import FourfoldError
from fourfold.worker.wire import (
    Cancel,
    Frames,
    Message,
    News,
    Submit,
    Taken,
    chunk_row,
    fault,
    frame,
    layer_rows,
    logprob_rows,
    stats_row,
)

_READ = 1 << 18
_COMPILING = 0.005
"""Seconds until we look again whether a constraint is compiled, where nothing else happens."""


class Worker:
    """Serves one engine to who holds the other end of `connection`, until he closes it."""

    def __init__(self, engine: Engine, connection: socket.socket) -> None:
        self._engine = engine
        self._connection = connection
        self._frames = Frames()
        self._answers: dict[int, Answer] = {}
        self._told: dict[int, tuple[int, int]] = {}
        """Of each answer: cached tokens, log probabilities of its prompt."""
        self._compiling: dict[int, Future[Answer]] = {}
        self._taken = 0
        self._stats: list[object] = []

    def run(self) -> None:
        """Until the other end is closed; what runs then is given up."""
        with ThreadPoolExecutor(1, thread_name_prefix="fourfold-constraints") as self._compiler:
            try:
                while self._hear():
                    if self._answers:
                        self._engine.step()
                    self._tell()
            except (BrokenPipeError, ConnectionResetError):
                pass  # he has gone while we spoke
            finally:
                for answer in self._answers.values():
                    self._engine.cancel(answer, wait=True)
                self._connection.close()

    def _hear(self) -> bool:
        """Do what has been asked for; False: the other end is closed.  Waits where there is nothing to do."""
        timeout = 0.0 if self._answers else _COMPILING if self._compiling else None
        while select.select([self._connection], [], [], timeout)[0]:
            data = self._connection.recv(_READ)
            if not data:
                return False
            for message in self._frames.push(data):
                self._obey(message)
            timeout = 0.0
        for number in [number for number, made in self._compiling.items() if made.done()]:
            self._take(number, self._compiling.pop(number).result)
        return True

    def _obey(self, message: Message) -> None:
        if isinstance(message, Submit):
            request, said = Request.from_json(message.request), message.said
            if request.constraint is None:
                self._take(message.number, lambda: self._submit(request, said))
            else:
                # Others need not wait for its compilation.
                self._compiling[message.number] = self._compiler.submit(self._submit, request, said)
        elif isinstance(message, Cancel) and message.choice is not None:
            if (answer := self._answers.get(message.number)) is not None:
                self._engine.drop(answer, message.choice)
        elif isinstance(message, Cancel):
            if (made := self._compiling.pop(message.number, None)) is not None:
                made.add_done_callback(self._give_up)
                self._taken += 1
            if (answer := self._answers.pop(message.number, None)) is not None:
                del self._told[message.number]
                self._engine.cancel(answer, wait=True)
        else:
            raise AssertionError(message)

    def _submit(self, request: Request, said: list[list[int]]) -> Answer:
        answer = self._engine.submit(request, said=said)
        for _ in range(sum(map(len, said))):
            answer.take()
        return answer

    def _give_up(self, made: Future[Answer]) -> None:
        if not made.cancelled() and made.exception() is None:
            self._engine.cancel(made.result())

    def _take(self, number: int, made: Callable[[], Answer]) -> None:
        self._taken += 1
        try:
            self._answers[number] = made()
        except Exception as error:
            self._send(Taken(number, _fault(error)))
        else:
            self._told[number] = (0, 1)
            self._send(Taken(number, None))

    def _tell(self) -> None:
        news = News(self._taken, [], [], [], [], [], stats_row(self._engine.stats()))
        for number, answer in self._answers.items():
            self._collect(number, answer, news)
        for number, _ in news.ended:
            del self._answers[number], self._told[number]
        if news.chunks or news.ended or news.scored or news.stats != self._stats:
            self._stats = news.stats
            self._send(news)

    def _collect(self, number: int, answer: Answer, news: News) -> None:
        """What one answer has got."""
        ended = answer.ended  # asked first: the last chunk comes before the end
        before = len(news.chunks)
        while (chunk := answer.take()) is not None:
            news.chunks.append(chunk_row(number, chunk))
        cached, scored = self._told[number]
        if len(news.chunks) > before and (cached != answer.cached_tokens or len(answer.ids) <= 1):
            cached = answer.cached_tokens
            news.begun.append([number, cached, answer.timing.prefill_seconds])
        if len(answer.prompt_logprobs) > scored:
            news.scored.append([number, logprob_rows(answer.prompt_logprobs[scored:])])
            scored = len(answer.prompt_logprobs)
        self._told[number] = (cached, scored)
        if ended and answer.layers:
            news.layers.append([number, layer_rows(answer.layers)])
        if ended:
            news.ended.append([number, None if answer.error is None else _fault(answer.error)])

    def _send(self, message: Message) -> None:
        self._connection.sendall(frame(message))


def _fault(error: Exception) -> list[object]:
    """The error and, where it is a mistake of ours, the places it came through."""
    if isinstance(error, FourfoldError):
        return fault(error)
    frames = traceback.extract_tb(error.__traceback__)
    return fault(error, [f"{one.filename}:{one.lineno} {one.name}" for one in frames])
