"""`fourfold serve` as a process, and a client that costs as little as one can."""

from __future__ import annotations

import itertools
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

END = b"0\r\n\r\n"
"""Of a chunked body."""


class Served:
    """A server of the shipped model, or of another one, on a free port.

    words: further options of `fourfold serve`.  log: what it says on stderr goes there.
    """

    def __init__(self, log: Path, *words: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "fourfold", "serve", "--port", "0", *words]
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self._process.stdout is not None
        pasted = [self._process.stdout.readline() for _ in range(3)]
        found = re.search(r"http://127\.0\.0\.1:(\d+)", pasted[2])
        if found is None:
            raise RuntimeError(f"the server did not start: {log.read_text(encoding='utf-8')}")
        self.port = int(found[1])

    @property
    def pid(self) -> int:
        """Of the process that speaks HTTP."""
        return self._process.pid

    @property
    def engine(self) -> int:
        """Of the engine's process."""
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0])

    def get(self, path: str) -> tuple[int, Any]:
        return self.ask(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        return self.ask(request(path, body))

    def ask(self, data: bytes) -> tuple[int, Any]:
        """Status and body of one exchange; the body as JSON where it is."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as one:
            one.sendall(data)
            answer = b""
            while more := one.recv(1 << 16):
                answer += more
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body) if b"application/json" in head else body

    def engine_state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/health")[1]["engine"]
        return found

    def log_lines(self) -> list[dict[str, Any]]:
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> int:
        """Its exit code."""
        return self._process.wait(seconds)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def request(path: str, body: Any) -> bytes:
    """A POST of a JSON body, or of bytes that are meant to be one."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data


@dataclass
class Stream:
    """What one stream has brought.  arrivals: seconds on the monotonic clock, and bytes, of each read."""

    socket: socket.socket
    data: list[bytes] = field(default_factory=list)
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    ended: bool = False

    @property
    def body(self) -> bytes:
        """The events, without the chunks that they came in."""
        rest, found = b"".join(self.data).partition(b"\r\n\r\n")[2], []
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            found.append(rest[:length])
            rest = rest[length + 2 :]
        return b"".join(found)

    @property
    def events(self) -> list[Any]:
        lines = [line for line in self.body.split(b"\n") if line.startswith(b"data: ")]
        return [json.loads(line[6:]) for line in lines if line != b"data: [DONE]"]

    @property
    def text(self) -> str:
        """Of a chat or a completion."""
        choices = [choice for event in self.events for choice in event.get("choices", ())]
        return "".join(one.get("text") or one.get("delta", {}).get("content") or "" for one in choices)

    @property
    def whole(self) -> bool:
        """It has come to its proper end."""
        return self.ended and b"data: [DONE]" in self.body

    @property
    def longest_gap(self) -> float:
        """Seconds between two reads, at most."""
        times = [when for when, _ in self.arrivals]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


_PAUSE = 0.02


class Client:
    """Reads streams on one thread, and leaves what came as it is until they have ended.

    It looks every 20 ms, so that the server need not wake it for every piece.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()

    def begin(self, path: str, body: Any) -> Stream:
        one = socket.create_connection(("127.0.0.1", self._port))
        one.sendall(request(path, body))
        one.setblocking(False)
        stream = Stream(one)
        self._selector.register(one, selectors.EVENT_READ, stream)
        return stream

    def read(self) -> None:
        """What has come, after a pause."""
        time.sleep(_PAUSE)
        for key, _ in self._selector.select(0):
            stream: Stream = key.data
            try:
                data = stream.socket.recv(1 << 16)
            except ConnectionError:
                data = b""
            stream.data.append(data)
            stream.arrivals.append((time.monotonic(), len(data)))
            if not data or data.endswith(END):
                stream.ended = True
                self.drop(stream)

    def finish(self, streams: Sequence[Stream], seconds: float = 600.0) -> None:
        """Read until these have ended.  TimeoutError: they have not."""
        until = time.monotonic() + seconds
        while not all(stream.ended for stream in streams):
            if time.monotonic() > until:
                raise TimeoutError
            self.read()

    def drop(self, stream: Stream) -> None:
        """Close a stream, at its end or before."""
        self._selector.unregister(stream.socket)
        stream.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._selector.get_map().values()):
            self.drop(key.data)
        self._selector.close()


def cpu_seconds(pid: int) -> float:
    """Seconds that a process has computed."""
    values = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Memory that a process has to itself: what it has not mapped from files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise ValueError(f"process {pid} has no RssAnon")
