"""The door: every request gets an id, shows its key, keeps to its limits, and leaves a line in the log."""

from __future__ import annotations

import asyncio
import re
from contextlib import AbstractContextManager, nullcontext

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fourfold.engine.timeline import on_track
from fourfold.engine.trace_file import TraceFile, now
from fourfold.server.access import Keys
from fourfold.server.backend import Server
from fourfold.server.calls import Call, call_id
from fourfold.server.errors import GONE, ApiError
from fourfold.server.page import PATHS

OPEN_PATHS = frozenset({"/health", "/ready"}) | PATHS
"""Those that need no key."""

_QUIET = OPEN_PATHS | {"/metrics"}
"""Those that machines ask every few seconds: not in the log."""

_BODY_SECONDS = 60.0
_PATIENCE = 4
"""A body that is so many times too large, as its client says, is read to its end and dropped."""


class Gate:
    """In front of the routes; their requests find the Call in `scope["state"]["call"]`."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server
        self._keys = Keys(server.config.keys)
        path = server.config.trace_file
        self._trace = None if path is None else TraceFile(path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        call = Call(call_id(headers.get("x-request-id")), scope["method"], scope["path"])
        scope.setdefault("state", {})["call"] = call
        traced = self._trace if call.method == "POST" else None
        if traced is not None:
            traced.write(on_track("b", call.id, "request", now(), path=call.path))

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = call.status or message["status"]
                MutableHeaders(scope=message)["x-request-id"] = call.id
            await send(message)

        try:
            await self._admit(scope, receive, answered, call, headers)
        except asyncio.CancelledError:
            if not self._server.draining:
                raise
            call.error = "it was still running when the server shut down"
            if call.status == 0:
                cut = ApiError(503, "the server has shut down", retry_after=5)
                await cut.response(call.path, call.id)(scope, receive, answered)
        except Exception as error:
            told = self._server.failed(call, error)
            if call.status == 0:
                await told.response(call.path, call.id)(scope, receive, answered)
        finally:
            route = scope.get("route")
            path = route.path if isinstance(route, Route) else "other"
            self._server.metrics.http(call.method if route is not None else "other", path, call.status)
            if call.status == GONE:
                self._server.metrics.vanished.inc()
            if traced is not None:
                tokens = {"prompt_tokens": call.prompt_tokens, "completion_tokens": call.completion_tokens}
                traced.write(on_track("e", call.id, "request", now(), status=call.status, **tokens))
            if call.path not in _QUIET:
                self._server.log.call(call)

    async def _admit(self, scope: Scope, receive: Receive, send: Send, call: Call, headers: Headers) -> None:
        host = re.sub(r":\d+$", "", headers.get("host", "")).strip("[]").lower()
        if self._server.config.hosts and host not in self._server.config.hosts:
            allowed = ", ".join(self._server.config.hosts)
            raise ApiError(403, f"the server is called {host!r} here; allowed: {allowed}")
        counted: AbstractContextManager[None] = nullcontext()
        if call.path not in OPEN_PATHS:
            call.key = self._keys.check(headers)
            if call.method == "POST":
                counted = self._server.quota.request(call.key)
        with counted:
            body = b""
            if call.method == "POST":
                # A page in a browser may send other types to any address without being asked.
                if not headers.get("content-type", "").lower().startswith("application/json"):
                    raise ApiError(415, "the body has no JSON type; send Content-Type: application/json")
                body = await self._body(receive, headers)
            await self._app(scope, _replayed(body, receive), send)

    async def _body(self, receive: Receive, headers: Headers) -> bytes:
        most = self._server.config.body_bytes
        declared = headers.get("content-length", "0")
        too_large = declared.isdigit() and int(declared) > most
        if too_large and int(declared) > _PATIENCE * most:
            raise _too_large(most)
        parts, size = [], 0
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                # Who still sends when we close never sees why.
                while too_large:
                    message = await receive()
                    if not message.get("more_body", False):
                        raise _too_large(most)
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(GONE, "the client went away")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise _too_large(most)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {_BODY_SECONDS:g} s") from None


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is too large; allowed: {most:,} bytes", code="request_too_large")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once and then waits for the client to go."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay
