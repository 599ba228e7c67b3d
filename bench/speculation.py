"""Does guessing tokens pay, and does it ever cost?  Decoding with drafts against decoding without.

    python -m bench.speculation [--model FOLDER] [--batches 1 2 4 8 16] [--contexts 128 512 1536]
        [--temperatures 0 0.8] [--tokens 160] [--rounds 3] [--out results.json]

For each batch size and context: so many prompts of the corpus' held-out text, each followed by an answer of
`--tokens` tokens, without drafts, with repetitions, and with the MTP block and repetitions.  Each has an
engine of its own, which has decoded one round before; in every round all take turns and decode the same new
text.  Time counts from the step in which the last prompt was done to that in which the first answer is, so
that the batch has its size.  `gain` is seconds without drafts over
seconds with them, medians of the rounds; `noise` the same of two engines without drafts, the error of this.
Answers are compared: they must be the same.  Rows are added to those that --out holds already.
"""

from __future__ import annotations

import argparse
import datetime
import json
import lzma
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fourfold
from bench.gemv import commit
from fourfold import Engine, EngineConfig, Request, Sampling
from fourfold.engine.config import Draft
from fourfold.engine.limits import Counters
from fourfold.kernels import cpu
from fourfold.kernels.cpu.processor import processor
from fourfold.model.transformer import Transformer

CORPUS = Path(__file__).parent.parent / "models" / "corpus" / "heldout.jsonl.xz"
ENGINES: tuple[tuple[str, Draft], ...] = (
    ("plain", "none"),
    ("again", "none"),
    ("ngram", "ngram"),
    ("mtp", "mtp"),
)


@dataclass
class Cell:
    """One batch size, context and temperature."""

    batch: int
    context: int
    temperature: float
    tokens: int

    def requests(self, texts: Sequence[int], round_: int) -> list[Request]:
        """Prompts that differ; the same in every engine."""
        step = len(texts) // (self.batch * (round_ + 2))
        starts = [(round_ * 7919 + i * step) % (len(texts) - self.context) for i in range(self.batch)]
        return [
            Request(
                prompt=[0, *texts[start : start + self.context - 1]],
                max_tokens=self.tokens,
                sampling=Sampling(temperature=self.temperature, seed=100 * round_ + i),
                ignore_eos=True,
            )
            for i, start in enumerate(starts)
        ]


def text_ids(model: Transformer) -> list[int]:
    """Held-out text of the shipped model's corpus, one story after the other."""
    assert model.tokenizer is not None
    return [token for story in stories() for token in model.tokenizer.encode(story + "\n")]


def stories() -> list[str]:
    """Those of the corpus that nothing was trained on."""
    with lzma.open(CORPUS, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [record.get("text") or record["response"] for record in records if record["kind"] == "story"]


def decode(own: Engine, requests: Sequence[Request]) -> tuple[float, int, list[list[int]]]:
    """Seconds and tokens from the step after which every request had a token to that in which the first one
    ended; the answers."""
    answers = [own.submit(request) for request in requests]
    while not all(answer.ids for answer in answers):
        own._next_step().result()
    before = sum(len(answer.ids) for answer in answers)
    begun = time.perf_counter()
    while not any(answer.ended for answer in answers):
        own._next_step().result()
    seconds = time.perf_counter() - begun
    tokens = sum(len(answer.ids) for answer in answers) - before
    while not all(answer.ended for answer in answers):
        own._next_step().result()
    return seconds, tokens, [answer.ids for answer in answers]


def measure(model: Transformer, cell: Cell, texts: Sequence[int], rounds: int) -> dict[str, Any]:
    """One row of the table."""
    config: dict[str, Any] = {"max_running": cell.batch, "snapshots": 2 * cell.batch, "memory": "600MiB"}
    engines = {name: Engine(model, EngineConfig(**config, draft=draft)) for name, draft in ENGINES}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    tokens = 0
    before: dict[str, Counters] = {}
    for round_ in range(rounds + 1):
        requests = cell.requests(texts, round_)
        said: dict[str, list[list[int]]] = {}
        for name, own in engines.items():
            spent, counted, said[name] = decode(own, requests)
            if round_:
                tokens += counted if name == "plain" else 0
                seconds[name].append(spent / counted)
            else:
                before[name] = own.stats().counters
        assert all(answers == said["plain"] for answers in said.values()), "answers differ"
    row: dict[str, Any] = {
        "batch": cell.batch,
        "context": cell.context,
        "temperature": cell.temperature,
        "tokens": tokens,
        "rounds": rounds,
        "plain_tokens_per_second": 1 / statistics.median(seconds["plain"]),
    }
    for name, own in engines.items():
        if name == "plain":
            continue
        gain = statistics.median(seconds["plain"]) / statistics.median(seconds[name])
        if name == "again":
            row["noise"] = gain
            continue
        row[name] = {"gain": gain} | drafts(before[name], own.stats().counters)
    for own in engines.values():
        own.close()
    return row | {"seconds_per_token": seconds}


def drafts(before: Counters, after: Counters) -> dict[str, float]:
    """What was drafted in the timed rounds."""
    verified, drafted = after.verified - before.verified, after.drafted - before.drafted
    accepted = after.accepted - before.accepted
    return {
        "drafted": drafted,
        "accepted": accepted,
        "acceptance": accepted / drafted if drafted else 0.0,
        "draft_length": drafted / verified if verified else 0.0,
        "verified": verified,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["batch  context  temp.  plain tok/s  noise  ngram  accepted  mtp    accepted  length"]
    for row in rows:
        ngram, mtp = row["ngram"], row["mtp"]
        lines.append(
            f"{row['batch']:5}  {row['context']:7}  {row['temperature']:5}  "
            f"{row['plain_tokens_per_second']:11.0f}  {row['noise']:5.2f}  {ngram['gain']:5.2f}  "
            f"{ngram['acceptance']:8.0%}  {mtp['gain']:5.2f}  {mtp['acceptance']:8.0%}  "
            f"{mtp['draft_length']:6.1f}"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=fourfold.shipped_model())
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 1536])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--numerics", default="fast")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, help="add the rows to this JSON document")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    cpu.use_threads(options.threads)
    model = fourfold.load(options.model, numerics=options.numerics)
    texts = text_ids(model)
    rows = []
    for batch in options.batches:
        for context in options.contexts:
            for temperature in options.temperatures:
                cell = Cell(batch, context, temperature, options.tokens)
                rows.append(measure(model, cell, texts, options.rounds))
                print(table(rows[-1:]), flush=True)
    document: dict[str, Any] = {"question": "speculation", "rows": []}
    if options.out is not None and options.out.exists():
        document = json.loads(options.out.read_text(encoding="utf-8"))
    document |= {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "isa": cpu.describe()["isa"],
        "torch": torch.__version__,
        "commit": commit(),
        "command": "python -m bench.speculation " + " ".join(sys.argv[1:]),
        "note": options.note,
        "threads": options.threads,
        "numerics": options.numerics,
        "model": options.model.name,
        "rows": [*document["rows"], *rows],
    }
    print(table(document["rows"]))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in document.items() if key != "rows"}))


if __name__ == "__main__":
    main()
