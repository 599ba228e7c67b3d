"""A file of trace events that several processes write and that is whole whenever one of them ends.

Chrome's trace event format, a JSON array of one event a line, which Perfetto (ui.perfetto.dev) and
chrome://tracing open; the format lets the closing bracket be absent, so that the file needs no end.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fourfold.errors import ConfigError
from fourfold.tiers.files import say, write_all

Event = Mapping[str, Any]

MOST_BYTES = 64 << 20
"""Then the file gets the suffix .1, in the place of the one that has it, and another one begins."""
STEPS = 1
"""The track (tid) of the engine's steps; requests have tracks of their own, by `id`."""

_TRIES, _PAUSE = 20, 0.001
"""For the lock, and the seconds between them."""
_TAIL = 1 << 16
_HEAD = (
    {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "fourfold"}},
    {"ph": "M", "pid": 1, "tid": STEPS, "name": "thread_name", "args": {"name": "engine steps"}},
)


def now() -> float:
    """Microseconds of a clock that all processes of a machine share and nobody sets."""
    return time.monotonic_ns() / 1000


class TraceFile:
    """The file at `path`, with the .1 before it of `most` bytes each.  ConfigError: it cannot be written to.

    fresh: what is there is of an earlier server, and gets the suffix.
    """

    def __init__(self, path: Path, *, fresh: bool = False, most: int = MOST_BYTES) -> None:
        self._path = path
        self._most = most
        self._guard = threading.Lock()
        self._file: int | None = None
        self._stalled = self._given_up = False
        try:
            if (file := self._locked()) is None:
                raise BlockingIOError(None, "another process keeps its lock")
            if fresh and os.fstat(file).st_size:
                file = self._rotated(file)
            _mend(file)
            fcntl.flock(file, fcntl.LOCK_UN)
        except OSError as error:
            self._close()
            raise ConfigError(
                f"trace_file: {path} cannot be written to ({error.strerror}); allowed: a file in a folder "
                "that is there"
            ) from None

    def write(self, *events: Event) -> None:
        """Append events.  Where that fails it is said, once, and nothing is traced any more.

        They are left out where another process keeps the lock for too long: nobody waits for a trace.
        """
        data = _lines(events)
        with self._guard:
            if self._given_up:
                return
            try:
                if (file := self._locked()) is None:
                    return
                if os.fstat(file).st_size + len(data) > self._most:
                    file = self._rotated(file)
                write_all(file, data)
                fcntl.flock(file, fcntl.LOCK_UN)
            except OSError as error:
                say(f"{self._path} cannot be written to ({error.strerror}): requests are not traced any more")
                self._close()
                self._given_up = True

    def close(self) -> None:
        with self._guard:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _locked(self) -> int | None:
        """The file that has the path now, open, with its lock; None: that does not come."""
        while True:
            if self._file is None:
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._file = os.open(self._path, flags, 0o600)
            if not self._lock(self._file):
                return None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file), self._path.stat()):
                    return self._file
            self._close()  # another process has begun another one

    def _lock(self, file: int) -> bool:
        for _ in range(1 if self._stalled else _TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._stalled = False
                return True
            time.sleep(_PAUSE)
        self._stalled = True
        return False

    def _rotated(self, file: int) -> int:
        """Another file in the place of this one; who waits for its lock sees then that it has gone."""
        os.replace(self._path, f"{self._path}.1")
        self._close()
        fresh = self._locked()
        if fresh is None:
            raise BlockingIOError(None, "another process keeps its lock")
        _mend(fresh)
        return fresh


def _mend(file: int) -> None:
    """Write the beginning of a new file; leave out the line that a killed process has not finished."""
    size = os.fstat(file).st_size
    if size == 0:
        write_all(file, b"[\n" + _lines(_HEAD))
        return
    tail = os.pread(file, _TAIL, max(0, size - _TAIL))
    if not tail.endswith(b"\n"):
        os.ftruncate(file, size - len(tail) + tail.rfind(b"\n") + 1)


def _lines(events: Iterable[Event]) -> bytes:
    return b"".join(json.dumps(event, separators=(",", ":")).encode() + b",\n" for event in events)
