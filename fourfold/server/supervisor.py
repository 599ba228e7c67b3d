"""Keeps an engine there: starts it, listens to it, and starts another one when it ends before its time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal

from fourfold.errors import FourfoldError
from fourfold.server.calls import Log
from fourfold.server.hosts import Host
from fourfold.worker.wire import Failed, Frames, Message, Ready, WireError, error_of, frame

State = Literal["loading", "ready", "restarting", "failed"]

MOST_STARTS = 5
"""Engines in a row that end before they are ready, until no more are started."""
_HEALTHY = 60.0
"""Seconds after which an engine that ends has not failed at once."""
_PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before a start, by how many engines in a row have failed at once."""


class EngineLost(FourfoldError):
    """An engine has ended before its time."""


class Link(asyncio.Protocol):
    """The server's end of an engine's socket.  ready: done when it has loaded; lost: when it is gone."""

    def __init__(self, heard: Callable[[Message], None]) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self._heard = heard
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None

    def send(self, message: Message) -> None:
        """Nothing happens when it is gone: the next engine is told."""
        if self._transport is not None:
            self._transport.write(frame(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.push(data):
                if isinstance(message, Ready):
                    self.ready.set_result(None)
                elif isinstance(message, Failed):
                    self.ready.set_exception(error_of(message.fault))
                else:
                    self._heard(message)
        except WireError:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if not self.lost.done():
            self.lost.set_result(None)
        if not self.ready.done():
            self.ready.set_exception(EngineLost())


class Supervisor:
    """One engine at a time.

    heard: gets its messages; began: an engine is ready, behind this link; ended: it is gone; gave_up: there
    will be no other.  state: loading until the first is ready, failed when no more are started.  restarts:
    engines that took the place of one that had ended; reason: how the last one ended.
    """

    def __init__(
        self,
        host: Host,
        log: Log,
        *,
        heard: Callable[[Message], None],
        began: Callable[[Link], None],
        ended: Callable[[], None],
        gave_up: Callable[[], None],
    ) -> None:
        self.state: State = "loading"
        self.restarts = 0
        self.reason = ""
        self._host = host
        self._log = log
        self._heard, self._began, self._ended, self._gave_up = heard, began, ended, gave_up
        self._unready = 0
        """Engines in a row that were never ready."""

    async def run(self, started: asyncio.Future[None]) -> None:
        """Until cancelled or failed.  started: done when the first engine is ready, or with why it is not."""
        failures = 0
        while True:
            begin = time.monotonic()
            try:
                await self._live(started)
            except FourfoldError as error:
                if not started.done():
                    self.state = "failed"
                    started.set_exception(error)
                    return
                self.reason = str(error)
            failures = 0 if time.monotonic() - begin > _HEALTHY else failures + 1
            pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
            self._log.write("engine_ended", reason=self.reason, restarts=self.restarts, pause=pause)
            if self._unready >= MOST_STARTS:
                self.state = "failed"
                self._gave_up()
                return
            self.state = "restarting"
            await asyncio.sleep(pause)
            self.restarts += 1

    async def _live(self, started: asyncio.Future[None]) -> None:
        """One engine from its start to its end.  EngineLost: how it ended; FourfoldError: it cannot start."""
        link = Link(self._heard)
        self._unready += 1
        try:
            await asyncio.get_running_loop().create_connection(lambda: link, sock=self._host.open())
            try:
                await link.ready
            except EngineLost:
                raise EngineLost(f"the engine could not start: {await self._how()}") from None
            self._unready = 0
            self.state = "ready"
            self._began(link)
            if not started.done():
                started.set_result(None)
            await link.lost
            self._ended()
            raise EngineLost(await self._how())
        finally:
            link.close()

    async def _how(self) -> str:
        return await asyncio.to_thread(self._host.ended)
