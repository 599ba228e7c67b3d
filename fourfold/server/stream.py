"""Server-sent events: kept alive while there is nothing to say, given up when nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from typing import Any, Literal, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

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
        config = self._server.config
        watch = _Watch(send, keep_alive=config.keep_alive, slow_reader=config.slow_reader)
        gone = asyncio.ensure_future(_gone(receive))
        gone.add_done_callback(lambda _: watch.stop("gone"))
        try:
            await self._pump(watch)
        except asyncio.CancelledError:
            if not watch.stopped():
                with suppress(Exception):
                    await watch.body(self._failed(ApiError(503, "the server has shut down")))
                raise
            if watch.why == "gone":
                self._call.status = GONE
            else:
                # The server closes a connection whose response does not end.
                self._call.error = f"nobody read the stream for {config.slow_reader:g} s"
                self._server.metrics.slow.inc()
        finally:
            watch.close()
            gone.cancel()
            await self._source.aclose()
            self._reply.close()  # closing an iterator that has not begun does nothing

    async def _pump(self, watch: _Watch) -> None:
        await watch.send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for data in self._source:
                if data:
                    await watch.body(data)
        except Exception as error:
            await watch.body(self._failed(self._server.failed(self._call, error)))
        await watch.send({"type": "http.response.body", "body": b"", "more_body": False})


class _Watch:
    """Sends, and looks at the clock: nothing is made for a single event but what sends it.

    why: what stopped the task that made this.
    """

    def __init__(self, send: Send, *, keep_alive: float, slow_reader: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.why: Literal["gone", "slow"] | None = None
        self._send = send
        self._task = task
        self._keep_alive, self._slow_reader = keep_alive, slow_reader
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        """When something was sent, or has begun to be."""
        self._sending = self._closed = False
        self._comment: asyncio.Task[None] | None = None
        self._look()

    async def send(self, message: Message) -> None:
        self._last, self._sending = self._loop.time(), True
        await self._send(message)
        self._sending = False

    async def body(self, data: bytes) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": True})

    def stop(self, why: Literal["gone", "slow"]) -> None:
        """Cancel the task, unless it is done with this."""
        if not self._closed and self.why is None:
            self.why = why
            self._task.cancel()

    def stopped(self) -> bool:
        """Asked once, by who was cancelled: it was this, and nobody else."""
        return self.why is not None and self._task.uncancel() == 0

    def close(self) -> None:
        self._closed = True
        self._timer.cancel()
        if self._comment is not None:
            self._comment.cancel()

    def _look(self) -> None:
        """Say something where there is silence; stop where nobody reads."""
        now = self._loop.time()
        most = self._slow_reader if self._sending else self._keep_alive
        if now - self._last >= most:
            if self._sending:
                self.stop("slow")
            else:
                # An event may come meanwhile: whole events and comments go out in any order.
                self._comment = asyncio.ensure_future(self.body(_KEEP_ALIVE))
        after = min(self._last + most - now if now - self._last < most else most, self._slow_reader)
        self._timer = self._loop.call_later(after, self._look)


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
