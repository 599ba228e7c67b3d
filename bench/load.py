"""Does the server stand many clients for long?  Errors, latencies, throughput, and memory over time.

    python -m bench.load [--model FOLDER] [--streams 64] [--minutes 10] [--out results.json] [-- --threads 2]

Starts `fourfold serve` (what follows -- goes to it) and keeps --streams clients busy, each with one request
after another: all protocols, streamed, prompts of 8 to 600 words, answers of 16 to 256 tokens, one client
of 25 hangs up early.  With --url a server that runs already is asked; --pid is then its process.

The memory is the sum of the server's processes (Pss of smaps_rollup: what they share counts once), once a
second.  The first quarter of the time is warming up: caches fill and allocators settle.  The bound: of the
last quarter no more than 5 % + 32 MiB above the second one, medians.  Exit code 1: an error, or more memory.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fourfold
from bench.gemv import commit
from bench.load_client import Mix, Tally, drive
from bench.speculation import stories
from fourfold.kernels.cpu.processor import processor

MIB = 1 << 20
SHARE, MORE = 0.05, 32 * MIB


def processes(pid: int) -> list[int]:
    """A process and all that come from it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


def memory(pid: int) -> int:
    """Bytes that a process and its descendants hold; those that they share count once."""
    total = 0
    for one in processes(pid):
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue  # it has just ended
        total += int(re.findall(r"^Pss:\s+(\d+) kB", text, re.M)[0]) << 10
    return total


def growth(samples: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """The second quarter of the time against the last one."""
    end = samples[-1][0]
    second = statistics.median(size for at, size in samples if end / 4 <= at < end / 2)
    last = statistics.median(size for at, size in samples if at >= end * 3 / 4)
    bound = second * SHARE + MORE
    return {
        "settled_bytes": second,
        "last_bytes": last,
        "growth_bytes": last - second,
        "bound_bytes": bound,
        "within": last - second <= bound,
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Milliseconds."""
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=1000, method="inclusive")
    named = {"p50": cuts[499], "p90": cuts[899], "p99": cuts[989], "max": max(values)}
    return {name: round(1000 * value, 2) for name, value in named.items()}


async def load(
    url: str, model: str, *, streams: int, seconds: float, pid: int | None, seed: int, key: str = ""
) -> tuple[Tally, list[tuple[float, int]]]:
    """All clients, and what the server's memory was meanwhile: (seconds since the beginning, bytes)."""
    place = urlsplit(url)
    assert place.hostname and place.port, url
    tally, samples = Tally(), []
    begin = time.monotonic()
    texts = stories()
    async with asyncio.TaskGroup() as group:
        clients = [
            group.create_task(
                drive(
                    place.hostname,
                    place.port,
                    model,
                    Mix(texts, seed=seed * 1000 + number),
                    tally,
                    until=begin + seconds,
                    key=key,
                )
            )
            for number in range(streams)
        ]
        while not all(client.done() for client in clients):
            if pid is not None:
                samples.append((time.monotonic() - begin, await asyncio.to_thread(memory, pid)))
            await asyncio.wait(clients, timeout=1)
    return tally, samples


@contextmanager
def server(model: Path, more: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A server of our own: (its address, its process)."""
    command = [sys.executable, "-m", "fourfold", "serve", str(model), "--port", "0", *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"https?://[\w.:\[\]]+", process.stdout.readline())
        if found is None:
            raise SystemExit("the server has not started; run it by itself to see why")
        try:
            yield found[0].removesuffix("/"), process.pid
        finally:
            process.terminate()
            process.wait(timeout=60)


def report(
    tally: Tally, samples: Sequence[tuple[float, int]], seconds: float, streams: int
) -> dict[str, Any]:
    return {
        "streams": streams,
        "seconds": round(seconds, 1),
        "requests": len(tally.whole),
        "by_protocol": dict(sorted(tally.by_protocol.items())),
        "hung_up": tally.left,
        "errors": len(tally.errors),
        "first_errors": tally.errors[:10],
        "tokens_per_second": round(tally.tokens / seconds, 1),
        "prompt_tokens_per_second": round(tally.prompt_tokens / seconds, 1),
        "first_token_ms": percentiles(tally.first),
        "inter_token_ms": percentiles(tally.gaps),
        "request_ms": percentiles(tally.whole),
        "memory": growth(samples) if len(samples) > 8 else None,
        "memory_mib": [round(size / MIB, 1) for _, size in samples[:: max(1, len(samples) // 60)]],
    }


def table(found: dict[str, Any]) -> str:
    lines = [
        f"{found['requests']} requests in {found['seconds']} s over {found['streams']} streams, "
        f"{found['errors']} errors, {found['hung_up']} hung up",
        f"{found['tokens_per_second']} tokens/s, {found['prompt_tokens_per_second']} prompt tokens/s",
    ]
    for name in ("first_token_ms", "inter_token_ms", "request_ms"):
        values = "  ".join(f"{key} {value:,.0f}" for key, value in found[name].items())
        lines.append(f"{name:15} {values}")
    if (held := found["memory"]) is not None:
        lines.append(
            f"memory {held['settled_bytes'] / MIB:,.0f} MiB, then {held['last_bytes'] / MIB:,.0f} MiB: "
            f"{held['growth_bytes'] / MIB:+.1f} MiB, bound {held['bound_bytes'] / MIB:.0f} MiB"
        )
    return "\n".join([*lines, *found["first_errors"]])


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=fourfold.shipped_model())
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--pid", type=int, help="of that server's process")
    parser.add_argument("--name", help="of its model")
    parser.add_argument("--key", default="", help="an API key that it wants")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, help="write the JSON document there, too")
    parser.add_argument("serve", nargs="*", help="options of fourfold serve, behind --")
    return parser.parse_args(words)


def served_name(url: str, key: str) -> str:
    request = urllib.request.Request(f"{url}/v1/models", headers={"authorization": f"Bearer {key or 'none'}"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        return str(json.load(reply)["data"][0]["id"])


def main(words: Sequence[str] | None = None) -> int:
    options = arguments(words)

    def run(url: str, pid: int | None) -> dict[str, Any]:
        name = options.name or served_name(url, options.key)
        wanted = {"streams": options.streams, "seconds": 60 * options.minutes, "seed": options.seed}
        begin = time.monotonic()
        tally, samples = asyncio.run(load(url, name, pid=pid, key=options.key, **wanted))
        return {"model": name} | report(tally, samples, time.monotonic() - begin, options.streams)

    if options.url is not None:
        found = run(options.url, options.pid)
    else:
        with server(options.model, options.serve) as (url, pid):
            found = run(url, pid)
    document = {
        "question": "load",
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "commit": commit(),
        "command": "python -m bench.load " + " ".join(sys.argv[1:] if words is None else words),
        "note": options.note,
        **found,
    }
    print(table(document))
    print(json.dumps(document))
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    held = document["memory"]
    return int(bool(document["errors"]) or (held is not None and not held["within"]))


if __name__ == "__main__":
    sys.exit(main())
