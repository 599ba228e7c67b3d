"""What agents get: prefixes found, time to the first token, and what batching gives.

    python -m bench.agent_trace [--part trace] [--sessions 8] [--turns 20] [--context 30000] [--out FILE]
    python -m bench.agent_trace --part throughput [--batches 1 2 4 8 16 32] [--compare transformers]

trace: so many generated sessions at once (`bench.agent_session`: tools, thinking, edited last messages,
prompts that grow to `--context` tokens) on the shipped model, whose positions are raised for that.  The model
computes every logit; which token it says is the trace's, so that the history goes on as a real agent's would.
Of each prompt's tokens, `reachable` are those that it shares with a request that had ended when it came, its
last token left out; `hit_rate` is the part of them that was not computed again (what was taken over from
requests that still ran counts as nothing there).

throughput: requests of `--prompt` and `--tokens` tokens, all waiting from the beginning, computed so many at
once; against one after the other (batch 1), and against transformers' greedy `generate` on the same weights
and prompts, in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fourfold
from bench.agent_session import Session, Turn
from bench.gemv import commit
from bench.speculation import stories
from fourfold import Engine, EngineConfig, Request, Sampling
from fourfold.bench.peers_transformers import Transformers
from fourfold.engine import work
from fourfold.kernels import cpu
from fourfold.kernels.cpu.processor import processor
from fourfold.model.transformer import Transformer


@dataclass
class Asked:
    """One request: its tokens, and seconds from asking to the first token and to the last."""

    session: int
    turn: int
    prompt: int
    cached: int
    reachable: int
    answer: int
    first_token: float
    seconds: float


@contextmanager
def lengthened(folder: Path, positions: int) -> Iterator[Path]:
    """The checkpoint with so many positions."""
    with tempfile.TemporaryDirectory() as name:
        for file in folder.iterdir():
            (Path(name) / file.name).symlink_to(file)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (Path(name) / "config.json").unlink()
        (Path(name) / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
        yield Path(name)


class Script:
    """Says what the trace says: seed -> the prompt's length, and the answer."""

    def __init__(self) -> None:
        self.answers: dict[int | None, tuple[int, list[int]]] = {}

    def sample(self, logits: Tensor, sampling: Sampling, position: int) -> int:
        start, answer = self.answers[sampling.seed]
        return answer[min(position - start, len(answer) - 1)]


def shared(known: Sequence[np.ndarray], prompt: list[int]) -> int:
    """The longest beginning that a known sequence has, too, without the prompt's last token."""
    own = np.array(prompt[:-1])
    best = 0
    for other in known:
        size = min(len(own), len(other))
        differ = np.flatnonzero(own[:size] != other[:size])
        best = max(best, int(differ[0]) if len(differ) else size)
    return best


async def run_trace(own: Engine, sessions: Sequence[Sequence[Turn]]) -> list[Asked]:
    """Every session asks its next turn when it has the answer to the last."""
    script, known = Script(), [np.zeros(0, dtype=np.int64)]
    sample = vars(work)["sample"]
    asked: list[Asked] = []

    async def talk(number: int, turns: Sequence[Turn]) -> None:
        for i, turn in enumerate(turns):
            seed = number * 1000 + i
            script.answers[seed] = len(turn.prompt), turn.answer
            reachable, begun = shared(known, turn.prompt), time.perf_counter()
            answer = own.submit(Request(prompt=turn.prompt, sampling=Sampling(seed=seed)))
            first = 0.0
            async for _ in own.async_chunks(answer):
                first = first or time.perf_counter() - begun
            seconds = time.perf_counter() - begun
            known.append(np.array([*turn.prompt, *answer.ids]))
            asked.append(
                Asked(
                    number,
                    i,
                    len(turn.prompt),
                    answer.cached_tokens,
                    reachable,
                    len(answer.ids),
                    first,
                    seconds,
                )
            )

    vars(work)["sample"] = script.sample
    try:
        await asyncio.gather(*(talk(number, turns) for number, turns in enumerate(sessions)))
    finally:
        vars(work)["sample"] = sample
    return asked


def trace(model: Transformer, options: argparse.Namespace) -> dict[str, Any]:
    text = " ".join(stories()).split()
    assert model.tokenizer is not None
    sessions = [
        list(Session(model.tokenizer, text, seed, options.turns, options.context, tools=seed % 4 != 3))
        for seed in range(options.sessions)
    ]
    config = EngineConfig(
        max_running=options.sessions,
        memory=options.memory,
        snapshots=options.snapshots,
        draft=options.draft,
    )
    with Engine(model, config) as own:
        begun = time.perf_counter()
        asked = asyncio.run(run_trace(own, sessions))
        seconds = time.perf_counter() - begun
        stats = own.stats()
    first = sorted(one.first_token for one in asked)
    prompts, cached = sum(one.prompt for one in asked), sum(one.cached for one in asked)
    reachable = sum(one.reachable for one in asked)
    return {
        "requests": len(asked),
        "longest_prompt": max(one.prompt for one in asked),
        "prompt_tokens": prompts,
        "cached_tokens": cached,
        "reachable_tokens": reachable,
        "hit_rate": sum(min(one.cached, one.reachable) for one in asked) / reachable if reachable else 1.0,
        "cached_share": cached / prompts,
        "answer_tokens": sum(one.answer for one in asked),
        "seconds": seconds,
        "first_token_seconds": {
            f"p{p}": first[min(len(first) - 1, len(first) * p // 100)] for p in (50, 90, 95, 99)
        },
        "served_tokens_per_second": (prompts + sum(one.answer for one in asked)) / seconds,
        "computed_tokens_per_second": stats.counters.computed_tokens / seconds,
        "snapshots_held": stats.snapshots,
        "blocks": [stats.blocks, stats.blocks_free, stats.blocks_cached],
        "cache_bytes": stats.cache_bytes,
        "counters": asdict(stats.counters),
        "each": [asdict(one) for one in asked],
    }


def throughput(model: Transformer, options: argparse.Namespace) -> dict[str, Any]:
    generator = random.Random(1)
    vocabulary = range(20, model.config.vocab_size)
    prompts = [generator.choices(vocabulary, k=options.prompt) for _ in range(max(options.batches))]
    rows = []
    for batch in options.batches:
        config = EngineConfig(max_running=batch, snapshots=0, memory=options.memory)
        rates = []
        for _ in range(options.rounds):
            with Engine(model, config) as own:
                requests = [
                    Request(
                        prompt=prompt,
                        max_tokens=options.tokens,
                        sampling=Sampling(temperature=0.0),
                        ignore_eos=True,
                    )
                    for prompt in prompts
                ]
                begun = time.perf_counter()
                answers = [own.submit(request) for request in requests]
                while not all(answer.ended for answer in answers):
                    own.step()
                rates.append(sum(len(answer.ids) for answer in answers) / (time.perf_counter() - begun))
        rows.append({"batch": batch, "tokens_per_second": statistics.median(rates)})
        print(rows[-1], flush=True)
    for row in rows:
        row["gain"] = row["tokens_per_second"] / rows[0]["tokens_per_second"]
    if options.compare == "transformers":
        peer = Transformers(options.model)
        peer.use_threads(options.threads)
        for row in rows:
            row["transformers_tokens_per_second"] = _peer_rate(
                peer, prompts[: int(row["batch"])], options.tokens
            )
            print(row, flush=True)
    return {"requests": len(prompts), "prompt": options.prompt, "tokens": options.tokens, "rows": rows}


@torch.no_grad()
def _peer_rate(peer: Transformers, prompts: Sequence[Sequence[int]], tokens: int) -> float:
    """Answer tokens a second of one `generate` for all these prompts, prefill included."""
    ids = torch.tensor(prompts)
    begun = time.perf_counter()
    peer._model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return ids.shape[0] * tokens / (time.perf_counter() - begun)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=["trace", "throughput"], default="trace")
    parser.add_argument("--model", type=Path, default=fourfold.shipped_model())
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--context", type=int, default=30_000)
    parser.add_argument("--memory", default="1GiB", help="of the engine's cache")
    parser.add_argument("--snapshots", type=int, default=EngineConfig.snapshots)
    parser.add_argument("--draft", choices=["mtp", "ngram", "none"], default="none")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--compare", choices=["transformers"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    cpu.use_threads(options.threads)
    with lengthened(options.model, max(2048, 2 * options.context)) as folder:
        model = fourfold.load(folder, numerics="fast")
        result = trace(model, options) if options.part == "trace" else throughput(model, options)
    document = {
        "question": f"agent {options.part}",
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "isa": cpu.describe()["isa"],
        "torch": torch.__version__,
        "commit": commit(),
        "command": "python -m bench.agent_trace " + " ".join(sys.argv[1:]),
        "note": options.note,
        "threads": options.threads,
        "model": options.model.name,
        **result,
    }
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(
        json.dumps({key: value for key, value in document.items() if key not in ("each", "rows")}, indent=1)
    )


if __name__ == "__main__":
    main()
