"""The log of requests that have a name: what a new engine needs to finish what a killed one had begun.

A request's answer follows from its prompt, its options and its seed, to the bit.  These are logged when it
comes, and its tokens as they come, so that they need not be generated again.  One file of lines per engine,
each a CRC-32 and JSON: {"begin": number, ...}, {"tokens": [[number, choice, id, ...], ...]}, {"end": number}.

A line is written before the step ends and lies then with the operating system: killing the process loses
nothing.  Lines are synchronised to the disk within about a second, by a thread: a power failure may lose that
much, and its tokens are generated again.  A file belongs to the process that holds its lock; when that is
gone, the next engine of the same key takes the requests over.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from fourfold.engine.answer import Answer
from fourfold.engine.request import Request
from fourfold.errors import ConfigError, FourfoldError, RequestError
from fourfold.tiers.files import say, write_all

_SUFFIX, _NEW = ".log", ".new"
_KEPT = 86400.0
"""Seconds for which an interrupted request can be resumed."""
_FORGOTTEN = 600.0
_SYNC = 1.0
_SPARE = 1 << 20
"""Bytes that a file may have besides twice what is still of use in it."""
_TOKEN_BYTES = 8


@dataclass(frozen=True)
class Interrupted:
    """A request that an engine had begun when it ended.

    request: with its prompt's ids, seed and longest answer.  ids: the tokens so far of each choice.
    begun: seconds since 1970.
    """

    request: Request
    ids: tuple[tuple[int, ...], ...]
    begun: float


@dataclass
class _Entry:
    number: int
    begun: float
    request: Request
    ids: list[list[int]] = field(default_factory=list)

    def lines(self) -> Iterator[bytes]:
        """All that is known of it."""
        yield _line({"begin": self.number, "time": self.begun, "request": self.request.to_json()})
        yield _line({"tokens": [[self.number, choice, *ids] for choice, ids in enumerate(self.ids) if ids]})

    @property
    def size(self) -> int:
        """About so many bytes of lines."""
        assert isinstance(self.request.prompt, list)
        return _TOKEN_BYTES * (len(self.request.prompt) + sum(map(len, self.ids))) + 1024


class RequestLog:
    """The log of one engine in `folder`, where others have theirs.  Any thread may use it.

    ConfigError: the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{secrets.token_hex(8)}{_SUFFIX}"
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._interrupted: set[str] = set()
        self._numbers = 0
        self._file: int | None = None
        self._size = 0
        self._dirty, self._closed = threading.Event(), threading.Event()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lost = list(_abandoned(folder))
            for path, file in lost:
                for entry in _read(path, file):
                    self._take_over(entry)
            self._rewrite()
            for path, file in lost:
                path.unlink()
                file.close()
        except OSError as error:
            raise ConfigError(
                f"cache_dir: {folder} cannot be used ({error.strerror}); allowed: a folder that can be "
                "written to"
            ) from None
        self._thread = threading.Thread(target=self._sync, name="fourfold-log", daemon=True)
        self._thread.start()

    @property
    def interrupted(self) -> dict[str, Interrupted]:
        """What engines had begun that are gone, and nobody has resumed or given up, by name."""
        with self._lock:
            return {name: self._found(name) for name in sorted(self._interrupted)}

    def begin(self, answer: Answer) -> None:
        """A request has come.  RequestError: its name belongs to another one."""
        name = answer.request.id
        if name is None:
            return
        with self._lock:
            if name in self._entries:
                state = "was interrupted: resume it or give it up" if name in self._interrupted else "runs"
                raise RequestError(
                    f"id is {name!r}; allowed: another one, for the request of this id {state}"
                )
            request = replace(answer.request, prompt=answer.prompt_ids, max_tokens=answer.limit)
            entry = self._new(name, time.time(), request)
            self._write(next(entry.lines()))

    def found(self, name: str) -> Interrupted:
        """What is known of an interrupted request.  RequestError: none has this name."""
        with self._lock:
            self._check(name)
            return self._found(name)

    def resume(self, name: str) -> None:
        """It goes on.  RequestError: no interrupted request has this name."""
        with self._lock:
            self._check(name)
            self._interrupted.remove(name)

    def progress(self, answers: Iterable[Answer]) -> None:
        """The tokens that these answers have got since the last time."""
        news: list[list[int]] = []
        with self._lock:
            for answer in answers:
                entry = self._entries.get(answer.request.id or "")
                if entry is None:
                    continue
                for choice, known in zip(answer.choices, entry.ids, strict=True):
                    if new := choice.ids[len(known) :]:
                        known += new
                        news.append([entry.number, choice.index, *new])
            if news:
                self._write(_line({"tokens": news}))

    def end(self, name: str | None) -> None:
        """It is done, or not wanted any more."""
        if name is None:
            return
        with self._lock:
            if not self._closed.is_set() and (entry := self._entries.pop(name, None)) is not None:
                self._interrupted.discard(name)
                self._write(_line({"end": entry.number}))

    def close(self) -> None:
        """What has not ended stays for a next engine."""
        with self._lock:
            self._closed.set()
            if self._file is not None and not self._entries:
                self._path.unlink(missing_ok=True)
        self._dirty.set()
        self._thread.join()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _take_over(self, entry: _Entry) -> None:
        name = entry.request.id
        assert name is not None
        if name not in self._entries and time.time() - entry.begun < _KEPT:
            self._new(name, entry.begun, entry.request).ids = entry.ids
            self._interrupted.add(name)

    def _new(self, name: str, begun: float, request: Request) -> _Entry:
        entry = _Entry(self._numbers, begun, request, [[] for _ in range(request.n)])
        self._numbers += 1
        self._entries[name] = entry
        return entry

    def _check(self, name: str) -> None:
        if name not in self._interrupted:
            known = ", ".join(map(repr, sorted(self._interrupted))) or "there is none"
            raise RequestError(f"id is {name!r}; allowed: that of an interrupted request ({known})")

    def _found(self, name: str) -> Interrupted:
        entry = self._entries[name]
        return Interrupted(entry.request, tuple(map(tuple, entry.ids)), entry.begun)

    def _write(self, line: bytes) -> None:
        """Add a line, and leave behind what is of no use any more when there is much of it."""
        if self._file is None:
            return
        try:
            self._size += len(line)
            if self._size > _SPARE + 2 * sum(entry.size for entry in self._entries.values()):
                self._rewrite()
            else:
                write_all(self._file, line)
            self._dirty.set()
        except OSError as error:
            os.close(self._file)
            self._file = None
            say(f"{self._path} cannot be written to ({error.strerror}): requests are not logged any more")

    def _rewrite(self) -> None:
        """Put a file in the place of the old one that has what is of use."""
        data = b"".join(line for entry in self._entries.values() for line in entry.lines())
        new = self._path.with_suffix(_NEW)
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        write_all(file, data)
        os.fsync(file)
        os.replace(new, self._path)
        if self._file is not None:
            os.close(self._file)
        self._file, self._size = file, len(data)

    def _sync(self) -> None:
        while not self._closed.is_set():
            self._dirty.wait()
            self._dirty.clear()
            with self._lock:
                file = None if self._file is None else os.dup(self._file)
            if file is not None:
                with suppress(OSError):  # writing will say it, too
                    os.fsync(file)
                os.close(file)
            self._closed.wait(_SYNC)


def _abandoned(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Logs whose engine is gone, and the open files that hold their locks."""
    for path in folder.glob(f"*{_NEW}"):
        # Nothing is in it that is not in the file in whose place it was to come.
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _FORGOTTEN:
                path.unlink()
    for path in folder.glob(f"*{_SUFFIX}"):
        with suppress(FileNotFoundError):
            file = path.open("rb")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its engine may have put another file in its place before we asked for the lock.
                own = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except (BlockingIOError, FileNotFoundError):
                own = False
            if own:
                yield path, file
            else:
                file.close()


def _read(path: Path, file: BinaryIO) -> list[_Entry]:
    """The requests of a log that have not ended.  What follows its last line was being written."""
    entries: dict[int, _Entry] = {}
    for count, line in enumerate(file.read().split(b"\n")[:-1], start=1):
        try:
            _apply(_checked(line), entries)
        except (ValueError, LookupError, TypeError, FourfoldError) as error:
            say(f"{path}: line {count} is damaged ({error}); what was logged from there on is lost")
            break
    return list(entries.values())


def _apply(record: dict[str, Any], entries: dict[int, _Entry]) -> None:
    if "begin" in record:
        request = Request.from_json(record["request"])
        ids: list[list[int]] = [[] for _ in range(request.n)]
        entries[record["begin"]] = _Entry(record["begin"], record["time"], request, ids)
    for number, choice, *ids in record.get("tokens", ()):
        entries[number].ids[choice] += ids
    if "end" in record:
        del entries[record["end"]]


def _line(record: dict[str, Any]) -> bytes:
    data = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %b\n" % (zlib.crc32(data), data)


def _checked(line: bytes) -> Any:
    data = line[9:]
    if line[:9] != b"%08x " % zlib.crc32(data):
        raise ValueError("its checksum is wrong")
    return json.loads(data)
