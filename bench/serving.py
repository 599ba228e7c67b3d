"""What does the server cost?  Streams over HTTP against the same requests on an engine alone.

    python -m bench.serving [--streams 8] [--tokens 400] [--rounds 5] [--threads 1] [--out results.json]

An engine in a process of its own takes the requests directly, and its tokens as they come (`Engine.step`);
then a server gets the same as chat completions, all at once, streamed to one client that reads sockets every
20 ms and does not look at what it reads.  Both are there all the time and take turns.  Time counts from the
first request to the last token, prompts included, each round with other prompts.  `kept` is the server's
tokens a second over the engine's, its median that of the rounds.  CPU time a token: of the engine's process,
of the server's and of the client, which share the machine's cores with each other.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import fourfold
from bench.gemv import commit
from bench.served import Client, Served, cpu_seconds
from bench.speculation import stories
from fourfold import Engine, EngineConfig, Request, Sampling
from fourfold.kernels import cpu
from fourfold.kernels.cpu.processor import processor

MEMORY = "600MiB"


def alone(threads: int) -> None:
    """For each line of stdin, a list of prompts' ids and the tokens of an answer: the seconds it took."""
    torch.set_num_threads(threads)
    cpu.use_threads(threads)
    model = fourfold.load(fourfold.shipped_model(), numerics="fast")
    with Engine(model, EngineConfig(memory=MEMORY)) as own:
        for line in sys.stdin:
            prompts, tokens = json.loads(line)
            begin = time.perf_counter()
            answers = [
                own.submit(
                    Request(prompt=ids, max_tokens=tokens, sampling=Sampling(seed=seed), ignore_eos=True)
                )
                for seed, ids in enumerate(prompts)
            ]
            said = 0
            while not all(answer.ended for answer in answers):
                own.step()
                for answer in answers:
                    while (chunk := answer.take()) is not None:
                        said += len(chunk.ids)
            assert said == len(prompts) * tokens
            print(json.dumps(time.perf_counter() - begin), flush=True)


def bodies(texts: list[str], tokens: int) -> list[dict[str, Any]]:
    """The same requests, as chat completions."""
    return [
        {
            "model": fourfold.shipped_model().name,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": tokens,
            "temperature": 1.0,
            "top_p": 1.0,
            "seed": seed,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for seed, text in enumerate(texts)
    ]


def over_http(server: Served, asked: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of one round, and CPU seconds of those who took part in it."""
    pids = {"engine": server.engine, "server": server.pid}
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    own, begin = time.process_time(), time.perf_counter()
    with Client(server.port) as client:
        streams = [client.begin("/v1/chat/completions", body) for body in asked]
        client.finish(streams)
    seconds = time.perf_counter() - begin
    spent = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
    for stream, body in zip(streams, asked, strict=True):
        assert stream.whole and stream.events[-1]["usage"]["completion_tokens"] == body["max_tokens"]
    return {"seconds": seconds, "client": time.process_time() - own, **spent}


def measure(streams: int, tokens: int, rounds: int, threads: int) -> dict[str, Any]:
    """The rounds; the first of each side does not count."""
    texts = [story[:200] for story in stories()]
    command = [sys.executable, "-c", f"from bench.serving import alone; alone({threads})"]
    rows: list[dict[str, float]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Served(Path(folder) / "log", "--threads", str(threads), "--cache-memory", MEMORY) as server,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as engine,
    ):
        assert engine.stdin is not None
        assert engine.stdout is not None
        for round_ in range(rounds + 1):
            asked = bodies(texts[round_ * streams : (round_ + 1) * streams], tokens)
            prompts = [
                server.post("/tokenize", {"messages": body["messages"]})[1]["tokens"] for body in asked
            ]
            engine.stdin.write(json.dumps([prompts, tokens]) + "\n")
            engine.stdin.flush()
            seconds = json.loads(engine.stdout.readline())
            found = over_http(server, asked)
            if round_:
                rows.append({"alone": seconds, "http": found.pop("seconds"), **found})
        engine.stdin.close()
    each = streams * tokens
    kept = [row["alone"] / row["http"] for row in rows]
    return {
        "streams": streams,
        "tokens": tokens,
        "alone_tokens_per_second": each / statistics.median(row["alone"] for row in rows),
        "http_tokens_per_second": each / statistics.median(row["http"] for row in rows),
        "kept_median": statistics.median(kept),
        "kept_least": min(kept),
        "cpu_microseconds_per_token": {
            name: 1e6 * statistics.median(row[name] for row in rows) / each
            for name in ("engine", "server", "client")
        },
        "rounds": rows,
    }


def table(row: dict[str, Any]) -> str:
    spent = row["cpu_microseconds_per_token"]
    return (
        "streams  tokens  engine tok/s  HTTP tok/s  kept   CPU us/token: engine  server  client\n"
        f"{row['streams']:7}  {row['tokens']:6}  {row['alone_tokens_per_second']:12.0f}  "
        f"{row['http_tokens_per_second']:10.0f}  {row['kept_median']:4.1%}  {spent['engine']:20.0f}  "
        f"{spent['server']:6.0f}  {spent['client']:6.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    row = measure(options.streams, options.tokens, options.rounds, options.threads)
    document = {
        "question": "serving",
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "isa": cpu.describe()["isa"],
        "torch": torch.__version__,
        "commit": commit(),
        "command": "python -m bench.serving " + " ".join(sys.argv[1:]),
        "note": options.note,
        "threads": options.threads,
        **row,
    }
    print(table(row))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in document.items() if key != "rounds"}))


if __name__ == "__main__":
    main()
