"""A server as a process: its socket, its signals, and the time that running requests have to end."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from fourfold.errors import ConfigError, FourfoldError
from fourfold.server.app import create_app
from fourfold.server.backend import Server
from fourfold.server.calls import Log
from fourfold.server.tls import Certificate


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound(host: str, port: int) -> socket.socket:
    """A socket with this address, 0 for any port, on which nothing listens yet.

    ConfigError: there is no such address here, or it is taken.
    """
    found = None
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        if found is not None:
            found.close()
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {error.strerror}; choose another --host or --port"
        ) from None
    return found


def address(listening: socket.socket, *, secure: bool = False) -> str:
    """http://127.0.0.1:8000"""
    host, port = listening.getsockname()[:2]
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def run(
    server: Server,
    listening: socket.socket,
    ready: Callable[[], None],
    certificate: Certificate | None = None,
) -> bool:
    """Serve until SIGTERM or SIGINT, then let running requests end; False: some did not in time.

    ready: called when requests are computed.  certificate: for TLS; read again when its files change, and on
    SIGHUP.  Raises what the engine could not start with.
    """
    _tell(server.log)
    config = uvicorn.Config(
        create_app(server),
        access_log=False,
        log_config=None,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(server.config.drain)),
        ws="none",
    )
    config.load()
    if certificate is not None:
        config.ssl = certificate.context
    process = _Process(config, server, ready, certificate)
    # What uvicorn puts back and then calls when it is done: without it SIGTERM would end us then.
    before = {one: signal.signal(one, _nothing) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        process.run(sockets=[listening])
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    if process.failure is not None:
        raise process.failure
    return process.in_time


class _Process(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        server: Server,
        ready: Callable[[], None],
        certificate: Certificate | None,
    ) -> None:
        super().__init__(config)
        self._server = server
        self._ready = ready
        self._certificate = certificate
        self._hung_up = False
        self.in_time = True
        self.failure: FourfoldError | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._certificate is not None:
            signal.signal(signal.SIGHUP, self._hang_up)
        self._engine = asyncio.create_task(self._start())

    async def _start(self) -> None:
        try:
            await self._server.engine.start()
        except FourfoldError as error:
            self.failure = error
            self.should_exit = True
        else:
            self._ready()

    def _hang_up(self, sig: int, frame: FrameType | None) -> None:
        self._hung_up = True

    async def on_tick(self, counter: int) -> bool:
        if self._certificate is not None and (self._hung_up or counter % 10 == 0):
            self._reread(self._certificate)
        return await super().on_tick(counter)

    def _reread(self, certificate: Certificate) -> None:
        """A certificate that cannot be used leaves the one that was."""
        forced, self._hung_up = self._hung_up, False
        try:
            if certificate.refresh(forced=forced):
                self._server.log.write("certificate", message="read again")
        except ConfigError as error:
            self._server.log.write("certificate", level="error", message=f"{error}; the old one stays")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._server.draining = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stats = self._server.engine.stats()
        self._server.log.write("draining", running=stats.running, waiting=stats.waiting)
        await super().shutdown(sockets)
        self.in_time = not self.server_state.tasks
        self._engine.cancel()
        await self._server.engine.close()
        self._server.log.write("stopped", in_time=self.in_time)


def _nothing(sig: int, frame: FrameType | None) -> None:
    """The signal has been dealt with."""


def _tell(log: Log) -> None:
    """What uvicorn has to say goes into our log."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            log.write(record.name, level=record.levelname.lower(), message=record.getMessage())

    logger = logging.getLogger("uvicorn")
    logger.handlers = [Handler(logging.WARNING)]
    logger.propagate = False
