"""What happens when things go wrong?  A server of the shipped model, real sockets, one fault after the other.

    python -m bench.drills [--short] [--only kill,vanish] [--out results.json]

Each drill says how many requests were asked, how many got their whole answer (where it can be compared: the
text of an undisturbed server), how many an error or a refusal that says why, how many were lost without
a word, and how long the longest silence of a stream was or, where the server ends, how long that took.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fourfold
from bench.gemv import commit
from bench.served import Client, Served, Stream, request, resident_bytes
from fourfold.kernels.cpu.processor import processor

CHAT = "/v1/chat/completions"
WORDS = ("--threads", "1", "--cache-memory", "300MiB")
JUMPING = """
import os, time

_real = time.time
time.time = lambda: _real() + (float(open(os.environ["CLOCK"]).read() or 0) if os.environ.get("CLOCK") else 0)
"""
"""A sitecustomize of the server and its engine: a wall clock that a file moves."""


def chat(number: int, tokens: int, **more: Any) -> dict[str, Any]:
    return {
        "model": fourfold.shipped_model().name,
        "messages": [{"role": "user", "content": f"Tell me story {number}."}],
        "max_tokens": tokens,
        "seed": number,
        "stream": True,
        "ignore_eos": True,
        **more,
    }


class Drills:
    """size: streams at once; tokens: of their answers; crowd: of those who do not read or vanish."""

    def __init__(self, folder: Path, *, short: bool) -> None:
        self.folder = folder
        self.size, self.tokens, self.crowd = (3, 60, 20) if short else (8, 400, 500)
        self._logs = 0

    def serve(self, *words: str) -> Served:
        self._logs += 1
        return Served(self.folder / f"log{self._logs}", *WORDS, *words)

    def begin(self, client: Client) -> list[Stream]:
        text = "Tell me a story of the sea and its ships. " * 10
        bodies = [
            chat(number, self.tokens, messages=[{"role": "user", "content": f"{number}: {text}"}])
            for number in range(self.size)
        ]
        return [client.begin(CHAT, body) for body in bodies]

    def undisturbed(self, server: Served) -> list[str]:
        with Client(server.port) as client:
            streams = self.begin(client)
            client.finish(streams)
        return [stream.text for stream in streams]

    def disturbed(self, server: Served, disturb: Callable[[], Any]) -> dict[str, Any]:
        """Streams in whose midst something happens, against those of before."""
        expected = self.undisturbed(server)
        with Client(server.port) as client:
            streams = self.begin(client)
            while not all(len(stream.arrivals) > 3 for stream in streams):
                client.read()
            # On a thread: this one goes on reading.
            disturbing = threading.Thread(target=disturb)
            disturbing.start()
            client.finish(streams, 120)
            disturbing.join()
        same = sum(stream.text == text for stream, text in zip(streams, expected, strict=True))
        return {
            "asked": len(streams),
            "whole": same,
            "lost": len(streams) - same,
            "recovery_seconds": max(stream.longest_gap for stream in streams),
        }

    def kill(self) -> dict[str, Any]:
        """kill -9 of the engine in the midst of streams."""
        return self._end_engine(signal.SIGKILL)

    def segfault(self) -> dict[str, Any]:
        """A segmentation fault of the engine in the midst of streams."""
        return self._end_engine(signal.SIGSEGV)

    def _end_engine(self, how: signal.Signals) -> dict[str, Any]:
        with self.serve() as server:
            row = self.disturbed(server, lambda: os.kill(server.engine, how))
            state = server.engine_state()
        told = f"texts as undisturbed; /health: {state['state']}, {state['restarts']} restart"
        return row | {"happened": f"{told}, {state['last_reason']}"}

    def disk_full(self) -> dict[str, Any]:
        """The disk of --cache-dir is full (RLIMIT_FSIZE: no file of the engine may grow beyond 16 KiB)."""
        import resource

        cache = self.folder / "full"
        with self.serve("--cache-dir", str(cache)) as server:
            resource.prlimit(server.engine, resource.RLIMIT_FSIZE, (1 << 14, 1 << 14))
            again = self.undisturbed(server)
            row = self.disturbed(server, lambda: None)
            state = server.engine_state()
            said = [line for line in server.log.read_text().splitlines() if "cannot be written" in line]
        row["asked"] += len(again)
        row["whole"] += len(again)
        about = said[0].removeprefix("fourfold: ").replace(str(cache), "the folder") if said else "nothing"
        return row | {"happened": f"goes on without writing; says: {about}; {state['restarts']} restarts"}

    def corrupt_cache(self) -> dict[str, Any]:
        """Every file of --cache-dir damaged while the server is down: a byte flipped, then a 4th cut off."""
        cache = self.folder / "cache"
        long = chat(1, self.tokens, messages=[{"role": "user", "content": "Tell me of the sea. " * 60}])
        texts = []
        hits = 0
        for round_ in range(4):
            with self.serve("--cache-dir", str(cache)) as server:
                with Client(server.port) as client:
                    stream = client.begin(CHAT, long | {"stream_options": {"include_usage": True}})
                    client.finish([stream])
                texts.append(stream.text)
                if round_ == 1:
                    hits = stream.events[-1]["usage"]["prompt_cache_hit_tokens"]
                server.terminate()
                server.wait(60)
            if round_ in (1, 2):
                for file in cache.rglob("*"):
                    if file.is_file() and (data := bytearray(file.read_bytes())):
                        data[len(data) // 2] ^= 0xFF
                        file.write_bytes(data if round_ == 1 else data[: len(data) * 3 // 4])
        same = sum(text == texts[0] for text in texts)
        return {
            "asked": len(texts),
            "whole": same,
            "lost": len(texts) - same,
            "recovery_seconds": 0.0,
            "happened": f"sound: {hits} tokens from disk; damaged: not used, computed again, the same text",
        }

    def slow_readers(self) -> dict[str, Any]:
        """Clients that ask for a stream and never read, and then some that do."""
        with self.serve("--max-waiting", str(2 * self.crowd)) as server:
            expected = self.undisturbed(server)
            before = resident_bytes(server.pid)
            idle = [
                _sent(server.port, request(CHAT, chat(number, 16)), receive=4096)
                for number in range(self.crowd)
            ]
            try:
                begin = time.monotonic()
                texts = self.undisturbed(server)
                seconds = time.monotonic() - begin
                grown = resident_bytes(server.pid) - before
                read = sum(_rest(one).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") for one in idle)
            finally:
                for one in idle:
                    one.close()
            _until(lambda: _idle(server))
        same = sum(text == other for text, other in zip(texts, expected, strict=True))
        return {
            "asked": self.crowd + self.size,
            "whole": read + same,
            "lost": self.crowd - read + self.size - same,
            "recovery_seconds": 0.0,
            "happened": f"those who read had all in {seconds:.1f} s, behind {self.crowd} others; the server "
            f"grew by {grown / 2**20:.0f} MiB",
        }

    def vanish(self) -> dict[str, Any]:
        """Clients that ask for long streams and hang up after the first bytes, in the midst of streams."""
        with self.serve() as server:

            def crowd() -> None:
                gone = [
                    _sent(server.port, request(CHAT, chat(number, 5000))) for number in range(self.crowd // 5)
                ]
                gone[0].recv(1)
                for one in gone:
                    one.close()

            row = self.disturbed(server, crowd)
            begin = time.monotonic()
            _until(lambda: _idle(server))
            lines = [line for line in server.log_lines() if line.get("status") == 499]
        return row | {
            "asked": row["asked"] + self.crowd // 5,
            "told": self.crowd // 5,
            "happened": f"others as undisturbed; {len(lines)} in the log with 499; engine idle "
            f"{time.monotonic() - begin:.1f} s after the last answer",
        }

    def nonsense(self) -> dict[str, Any]:
        """Malformed JSON, wrong shapes, 10 MB bodies, half requests, in the midst of streams."""
        sent = list(_nonsense())
        found: dict[int, int] = {}

        def ask() -> None:
            for path, body in sent:
                status, _ = server.post(path, body)
                found[status] = found.get(status, 0) + 1
            for data in (b"GET", b"\0" * 4096, b"POST /v1/messages HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"):
                _sent(server.port, data).close()

        with self.serve() as server:
            row = self.disturbed(server, ask)
        wrong = sum(count for status, count in found.items() if not 400 <= status < 500)
        return row | {
            "asked": row["asked"] + len(sent),
            "told": len(sent) - wrong,
            "lost": row["lost"] + wrong,
            "happened": "streams as undisturbed; "
            + ", ".join(f"{count} times {status}" for status, count in sorted(found.items())),
        }

    def clock(self) -> dict[str, Any]:
        """The wall clock jumps a day ahead and then two back, in the midst of streams."""
        (self.folder / "sitecustomize.py").write_text(JUMPING, encoding="utf-8")
        clock = self.folder / "clock"
        clock.write_text("0")
        paths = [str(self.folder), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        changed = {"CLOCK": str(clock), "PYTHONPATH": os.pathsep.join(paths)}
        before = {name: os.environ.get(name) for name in changed}
        os.environ |= changed
        try:
            with self.serve("--cache-dir", str(self.folder / "clocked")) as server:

                def jump() -> None:
                    for offset in (86400, -86400):
                        clock.write_text(str(offset))
                        time.sleep(0.2)

                row = self.disturbed(server, jump)
                created = server.post(CHAT, chat(0, 1, stream=False))[1]["created"] - time.time()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        return row | {"happened": f"nothing but dates: `created` is {created / 86400:+.1f} days"}

    def sigterm(self) -> dict[str, Any]:
        """SIGTERM in the midst of streams, with time to end."""
        with self.serve("--drain-timeout", "120") as server:
            begin = [0.0]

            def end() -> None:
                begin[0] = time.monotonic()
                server.terminate()

            row = self.disturbed(server, end)
            code = server.wait(60)
            row["recovery_seconds"] = time.monotonic() - begin[0]
        return row | {"happened": f"all streams to their end, exit code {code}"}

    def sigterm_at_once(self) -> dict[str, Any]:
        """SIGTERM in the midst of streams that are longer than --drain-timeout."""
        with self.serve("--drain-timeout", "1") as server, Client(server.port) as client:
            streams = [client.begin(CHAT, chat(number, 5000)) for number in range(self.size)]
            while not all(len(stream.arrivals) > 3 for stream in streams):
                client.read()
            begin = time.monotonic()
            server.terminate()
            client.finish(streams, 60)
            code = server.wait(60)
            told = sum(b'"error"' in stream.body for stream in streams)
        return {
            "asked": len(streams),
            "whole": 0,
            "told": told,
            "lost": len(streams) - told,
            "recovery_seconds": time.monotonic() - begin,
            "happened": f"an error as the streams' last event, exit code {code}",
        }


def _nonsense() -> Sequence[tuple[str, Any]]:
    """Paths and bodies that must be refused."""
    name = fourfold.shipped_model().name
    large = "x" * 10_000_000
    paths = (CHAT, "/v1/completions", "/v1/messages", "/v1/responses")
    bodies: list[Any] = [b"", b"{", b"[" * 100_000, b'{"model": NaN}', b"\xff\xfe", {}, [], "text"]
    wrong = [(path, body) for path in paths for body in bodies]
    sizes = [
        (CHAT, chat(1, 9, messages=[{"role": "user", "content": large}])),
        (CHAT, chat(1, 9, user=large, no_such_field=1)),
        ("/v1/completions", {"model": name, "prompt": [1] * 3_000_000}),
        ("/v1/messages", b'{"a":' * 2_000_000),
        ("/v1/responses", {"model": name, "input": "y" * 17_000_000}),
    ]
    return [*wrong, *sizes]


def _sent(port: int, data: bytes, *, receive: int | None = None) -> socket.socket:
    """A connection on which this was sent.  receive: bytes that its end takes before it is full."""
    one = socket.socket()
    if receive is not None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    one.connect(("127.0.0.1", port))
    one.sendall(data)
    return one


def _rest(one: socket.socket) -> bytes:
    """All that has been sent to it."""
    data = b""
    while more := one.recv(1 << 16):
        data += more
    return data


def _idle(server: Served) -> bool:
    health = server.get("/health")[1]
    return bool(health["running"] == health["waiting"] == 0)


def _until(true: Callable[[], bool]) -> None:
    for _ in range(1200):
        if true():
            return
        time.sleep(0.05)
    raise TimeoutError


NAMES = (
    "kill",
    "segfault",
    "disk_full",
    "corrupt_cache",
    "slow_readers",
    "vanish",
    "nonsense",
    "clock",
    "sigterm",
    "sigterm_at_once",
)


def drill(drills: Drills, name: str) -> dict[str, Any]:
    """One row of the table."""
    run = getattr(drills, name)
    return {"drill": name, "fault": run.__doc__, "told": 0, **run()}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = [
        "| fault | asked | whole | told why | lost | seconds | what happened |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    lines += [
        f"| {row['fault']} | {row['asked']} | {row['whole']} | {row['told']} | {row['lost']} | "
        f"{row['recovery_seconds']:.1f} | {row['happened']} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="few streams, short ones")
    parser.add_argument("--only", default=",".join(NAMES), help="names of drills, by commas")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(drill(Drills(Path(folder), short=options.short), name))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    document = {
        "question": "drills",
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "commit": commit(),
        "command": "python -m bench.drills " + " ".join(sys.argv[1:]),
        "note": options.note,
        "rows": rows,
    }
    print(table(rows))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
