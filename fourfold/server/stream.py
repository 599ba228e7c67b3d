"""Server-sent events: kept alive while there is nothing to say, given up when nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fourfold.server.answering import Reply
from fourfold.server.backend import Server
from fourfold.server.calls import Call
from fourfold.server.errors import GONE, ApiError, written

T = TypeVar("T")

_KEEP_ALIVE = b": keep-alive\n\n"


def sse(content: Any, event: str | None = None) -> bytes:
    """One event."""
    name = b"" if event is None else f"event: {event}\n".encode()
    return name + b"data: " + written(content) + b"\n\n"


class EventStream(Response):
    """Events as they come.  The client's going ends them, as does one that leaves its end full for too long.

    reply: what the events are of, given up at the end.  failed: how an error in the middle is told.
    """

    def __init__(
        self,
        server: Server,
        call: Call,
        reply: Reply,
        source: AsyncGenerator[bytes],
        failed: Callable[[ApiError], bytes],
    ) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"}
        )
        del self.headers["content-length"]
        self._server = server
        self._call = call
        self._reply = reply
        self._source = source
        self._failed = failed
        call.stream = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await self._send(
                send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            )
            if await self._pump(send, gone):
                await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})
            else:
                self._call.status = GONE
        except TimeoutError:
            # The server closes a connection whose response does not end.
            self._call.error = f"nobody read the stream for {self._server.config.slow_reader:g} s"
            self._server.metrics.slow.inc()
        finally:
            gone.cancel()
            await self._source.aclose()
            self._reply.close()  # closing an iterator that has not begun does nothing

    async def _pump(self, send: Send, gone: asyncio.Future[None]) -> bool:
        """Send events to their end; False: the client has gone."""
        while True:
            following = asyncio.ensure_future(_following(self._source))
            try:
                while not following.done():
                    waited: set[asyncio.Future[Any]] = {following, gone}
                    await asyncio.wait(
                        waited,
                        timeout=self._server.config.keep_alive,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    if gone.done():
                        return False
                    if not following.done():
                        await self._body(send, _KEEP_ALIVE)
                chunk = following.result()
            except TimeoutError:
                raise  # nobody reads
            except Exception as error:
                await self._body(send, self._failed(self._server.failed(self._call, error)))
                return True
            except asyncio.CancelledError:
                with suppress(Exception):
                    await self._body(send, self._failed(ApiError(503, "the server has shut down")))
                raise
            finally:
                if not following.done():
                    following.cancel()
                    with suppress(asyncio.CancelledError):
                        await following
            if chunk is None:
                return True
            await self._body(send, chunk)

    async def _body(self, send: Send, chunk: bytes) -> None:
        await self._send(send, {"type": "http.response.body", "body": chunk, "more_body": True})

    async def _send(self, send: Send, message: Any) -> None:
        async with asyncio.timeout(self._server.config.slow_reader):
            await send(message)


async def streamed(
    server: Server,
    call: Call,
    reply: Reply,
    source: AsyncGenerator[bytes],
    failed: Callable[[ApiError], bytes],
) -> EventStream:
    """The stream of a reply that the engine then has.  ApiError, RequestError: it cannot be served."""
    try:
        await reply.ask()
    except BaseException:
        reply.close()
        raise
    return EventStream(server, call, reply, source, failed)


async def _following(source: AsyncIterator[bytes]) -> bytes | None:
    return await anext(source, None)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which ends early when the client goes.  ApiError 499: it did."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(GONE, "the client went away")
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
