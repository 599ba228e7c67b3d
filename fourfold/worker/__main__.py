"""python -m fourfold.worker FD: an engine for who holds the other end of socket FD, and of our stdin.

The first message says what to load.  Whoever started us ends us by closing his ends, in whatever way.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

from fourfold.cli.groups import Loading
from fourfold.cli.model import open_model
from fourfold.engine.config import EngineConfig
from fourfold.engine.engine import Engine
from fourfold.errors import FourfoldError
from fourfold.worker.loop import Worker
from fourfold.worker.wire import Failed, Frames, Launch, Ready, fault, frame


def main() -> None:
    """Load what the first message says, and serve it."""
    # A terminal's Ctrl-C and a supervisor's SIGTERM reach all of us: the server says when running
    # requests have ended.
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    connection = socket.socket(fileno=int(sys.argv[1]))
    told = _launch(connection)
    try:
        opened = open_model(told.model, Loading(**told.loading))
        engine = Engine(opened.model, EngineConfig(**told.engine), adapters=told.adapters)
    except FourfoldError as error:
        connection.sendall(frame(Failed(fault(error))))
        return
    with engine:
        connection.sendall(frame(Ready()))
        Worker(engine, connection).run()


def _launch(connection: socket.socket) -> Launch:
    frames = Frames()
    while data := connection.recv(1 << 16):
        for message in frames.push(data):
            assert isinstance(message, Launch)
            return message
    sys.exit("fourfold: the server closed the connection before it said what to load")


def _end_with_the_server() -> None:
    """stdin ends when the server's process does: nobody is left who could want anything."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
