"""Where an engine runs: in a process of its own, or on a thread of this one."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from typing import Protocol

from fourfold.engine.engine import Engine
from fourfold.worker.loop import Worker
from fourfold.worker.wire import Launch, Ready, frame

_PATIENCE = 10.0
"""Seconds that an engine has to end when its socket is closed."""


class Host(Protocol):
    """Starts engines, one at a time.  No method waits for long but `ended`."""

    def open(self) -> socket.socket:
        """Start one; the first message on the socket says how that went."""

    def ended(self) -> str:
        """How the one behind a closed socket has ended, if there was one; waits until it has."""

    def kill(self) -> None:
        """End it at once."""


class Process:
    """An engine that this process starts, that ends with it, and that may end in any way before."""

    def __init__(self, launch: Launch) -> None:
        self._launch = frame(launch)
        self._process: subprocess.Popen[bytes] | None = None

    def open(self) -> socket.socket:
        own, theirs = socket.socketpair()
        with theirs:
            # stdin stays open as long as we live: that is how it knows.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fourfold.worker", str(theirs.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
            )
        own.sendall(self._launch)
        return own

    def ended(self) -> str:
        process = self._process
        if process is None:
            return ""
        assert process.stdin is not None
        try:
            code = process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return f"it had closed its connection and did not end within {_PATIENCE:g} s"
        finally:
            process.stdin.close()
        if code >= 0:
            return f"it ended with code {code}; its last words are on stderr"
        name = signal.Signals(-code).name
        return f"it was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    @property
    def pid(self) -> int | None:
        """Of the process that runs or ran last."""
        return None if self._process is None else self._process.pid


class Thread:
    """An engine of this process, for programs that have one and for tests.  It stays the caller's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread: threading.Thread | None = None

    def open(self) -> socket.socket:
        self._join()  # one that an event loop has left behind ends, for its socket is closed
        own, theirs = socket.socketpair()
        theirs.sendall(frame(Ready()))
        self._thread = threading.Thread(
            target=Worker(self._engine, theirs).run, name="fourfold-worker", daemon=True
        )
        self._thread.start()
        return own

    def ended(self) -> str:
        self._join()
        return "its thread has ended"

    def kill(self) -> None:
        """Threads cannot be killed: it ends between two steps, when its socket is closed."""

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join(_PATIENCE)
