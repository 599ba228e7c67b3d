"""Files that are read past the page cache while a model runs and must not change meanwhile, and new ones."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fourfold.errors import CheckpointError

_DIRECT = getattr(os, "O_DIRECT", 0)


class WatchedFile:
    """A file open for reading at any place, from any thread.

    What makes it the same file is its size and time of change: they are compared before each read.  One that
    was replaced or truncated is an error from then on, until a file of that size and time is there again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._open: _Descriptor | None = None
        try:
            self._identity = _identity(os.stat(path))
            self._open = _Descriptor(path)
        except OSError as error:
            raise self._broken(error) from error
        self.direct = self._open.direct
        """Whether reads go past the page cache (O_DIRECT)."""

    def read(self, buffers: Sequence[memoryview], offset: int, needed: int) -> None:
        """Fill `buffers` from `offset` on; at least the first `needed` bytes, the rest may lie past the end.

        With `direct` everything is a multiple of a page but `needed`.  CheckpointError: the file cannot be
        read, or is no longer the one that was opened.
        """
        try:
            opened = self._current()
            done = 0
            while done < needed:
                count = opened.read(_after(buffers, done), offset + done)
                if count == 0:
                    raise self._changed()
                done += count
        except OSError as error:
            self._open = None  # a new descriptor may do better: on network file systems it does
            raise self._broken(error) from error

    def close(self) -> None:
        """Reads that are under way end well; later ones open the file again."""
        self._open = None

    def _current(self) -> _Descriptor:
        """What is open, if it is unchanged; else what the path leads to, if that is the old file."""
        opened = self._open
        if opened is not None and _identity(os.fstat(opened.number)) == self._identity:
            return opened
        with self._lock:
            if _identity(os.stat(self.path)) != self._identity:
                raise self._changed()
            self._open = _Descriptor(self.path)
            return self._open

    def _changed(self) -> CheckpointError:
        size = self._identity[0]
        try:
            found = os.stat(self.path).st_size
            now = f"{found:,} bytes now" if found != size else "written to since"
        except OSError as error:
            now = str(error.strerror)
        return CheckpointError(
            f"{self.path}: changed while it was in use ({size:,} bytes when it was opened, {now}). Put the "
            "old file back with its time (cp -p), or load the model again"
        )

    def _broken(self, error: OSError) -> CheckpointError:
        if error.errno == errno.EINVAL:  # a direct read that ends inside a page: where the file ends now
            return self._changed()
        return CheckpointError(
            f"{self.path}: cannot be read ({error.strerror}). Check the disk and the file, then ask again"
        )


class _Descriptor:
    """An open file, closed with the last reader that uses it."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
        self.direct = bool(_DIRECT)
        try:
            self.number = os.open(path, flags | _DIRECT)
        except OSError:
            # Some file systems (a tmpfs of older kernels) refuse O_DIRECT; other causes fail again here.
            self.number = os.open(path, flags)
            self.direct = False

    def read(self, buffers: Sequence[memoryview], offset: int) -> int:
        count = os.preadv(self.number, buffers, offset)
        if not self.direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.number, offset, count, os.POSIX_FADV_DONTNEED)
        return count

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _after(buffers: Sequence[memoryview], done: int) -> list[memoryview]:
    """What is still empty once `done` bytes are in."""
    left = []
    for buffer in buffers:
        skipped = min(done, len(buffer))
        done -= skipped
        if skipped < len(buffer):
            left.append(buffer[skipped:])
    return left


def say(text: str) -> None:
    """A remark of the tiers: one line on stderr."""
    print(f"fourfold: {text}", file=sys.stderr, flush=True)


@contextmanager
def appearing(file: Path) -> Iterator[BinaryIO]:
    """A stream beside `file` that takes its name when all is on disk, and is removed if that fails."""
    beside = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            if hasattr(os, "posix_fadvise"):  # its pages in the cache are of no use to direct reads
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def write_all(file: int, data: bytes) -> None:
    """os.write, until all is written."""
    done = 0
    while done < len(data):
        done += os.write(file, data[done:])
