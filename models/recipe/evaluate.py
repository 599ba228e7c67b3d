"""Score a checkpoint: held-out text, grammar pairs, cloze, exact facts, stories that end by themselves.

Prints a table, then one JSON line. Definitions:
- held out: nats per answer token (the end token counts), bits per byte of answer text;
- minimal pairs: share of pairs whose good sentence has the larger sum of log-probabilities, as a
  text of its own (without the end token);
- cloze: share of items where the right choice, given the context, has the largest sum of
  log-probabilities (not divided by length; the choices are single words);
- facts: share of held-out templated questions whose greedy answer is exactly the expected one;
- stories: share of samples that end by themselves within the limit, and of those, share with
  exactly five sentences.

usage: python evaluate.py CHECKPOINT --eval models/eval --heldout models/corpus/heldout.jsonl.xz
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filters
import records
import torch

import fourfold
from fourfold.train.corpus import Encoder

BATCH, LIMIT = 16, 200
STORIES = [
    "a little dog and a big bone", "a girl named Lily and a red balloon", "a cat that is afraid of water",
    "two friends who find a key", "a rainy day", "a boy who learns to swim", "a lost duck", "a birthday cake",
    "a kind king", "a rabbit and a turtle",
]  # fmt: skip
SAMPLED = 3  # stories per prompt at SAMPLING_TEMPERATURE, besides the greedy one
SAMPLING_TEMPERATURE = 0.7


@torch.inference_mode()
def logprobs(model: Any, items: Sequence[tuple[list[int], int]]) -> Iterator[list[float]]:
    """Log-probability of each token from index `start` on, for (ids, start) in items, in order."""
    order = sorted(range(len(items)), key=lambda i: len(items[i][0]))
    found: dict[int, list[float]] = {}
    for begin in range(0, len(order), BATCH):
        members = order[begin : begin + BATCH]
        width = max(len(items[i][0]) for i in members)
        ids = torch.zeros(len(members), width, dtype=torch.int64)  # padding is behind: nothing sees it
        for row, i in enumerate(members):
            ids[row, : len(items[i][0])] = torch.tensor(items[i][0])
        scores = model(ids[:, :-1]).logits.float().log_softmax(dim=-1)
        picked = scores.gather(2, ids[:, 1:, None])[..., 0]  # [B, T - 1]
        for row, i in enumerate(members):
            tokens, start = items[i]
            found[i] = picked[row, max(start, 1) - 1 : len(tokens) - 1].tolist()
    for i in range(len(items)):
        yield found[i]


def held_out(model: Any, encoder: Encoder, path: Path) -> dict[str, dict[str, float]]:
    """Nats per token and bits per byte of the answers, per source and kind, and over all."""
    rows = list(records.read(path))
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for record, scores in zip(rows, logprobs(model, [encoder.record(r) for r in rows]), strict=True):
        size = len((record.get("response") or record["text"]).encode())
        for name in (f"{record['source']} {record['kind']}", "all"):
            for i, value in enumerate((1, len(scores), size, -sum(scores))):
                sums[name][i] += value
    return {
        name: {
            "documents": documents,
            "tokens": tokens,
            "nats_per_token": nats / tokens,
            "bits_per_byte": nats / math.log(2) / size,
        }
        for name, (documents, tokens, size, nats) in sorted(sums.items())
    }


def plain(encoder: Encoder, text: str) -> list[int]:
    """Ids of a text that starts a document, without the end token."""
    return encoder.record({"text": text})[0][:-1]


def minimal_pairs(model: Any, encoder: Encoder, path: Path) -> dict[str, float]:
    """Accuracy per phenomenon, and over all."""
    rows = list(records.read(path))
    items = [(plain(encoder, row[side]), 1) for row in rows for side in ("good", "bad")]
    sums = [sum(scores) for scores in logprobs(model, items)]
    right: dict[str, list[bool]] = defaultdict(list)
    for row, good, bad in zip(rows, sums[::2], sums[1::2], strict=True):
        for name in (row["phenomenon"], "all"):
            right[name].append(good > bad)
    return {name: sum(hits) / len(hits) for name, hits in right.items()}


def cloze(model: Any, encoder: Encoder, path: Path) -> float:
    """Accuracy; the choice is scored after the context's own tokens."""
    rows = list(records.read(path))
    items = []
    for row in rows:
        start = len(plain(encoder, row["context"]))
        items += [(plain(encoder, row["context"] + choice), start) for choice in row["choices"]]
    sums = [sum(scores) for scores in logprobs(model, items)]
    hits = 0
    for i, row in enumerate(rows):
        four = sums[4 * i : 4 * i + 4]
        hits += four.index(max(four)) == row["answer"]
    return hits / len(rows)


def answer(model: Any, encoder: Encoder, prompt: str, temperature: float, seed: int) -> tuple[str, bool]:
    """(text, whether it ended by itself)."""
    ids, start = encoder.record({"prompt": prompt, "response": ""})
    run = fourfold.generate(model, ids[:start], max_tokens=LIMIT, temperature=temperature, seed=seed)
    return "".join(run), run.finish_reason == "stop"


def facts(model: Any, encoder: Encoder, path: Path, count: int) -> dict[str, float]:
    """Greedy exact match on held-out templated questions, at most `count` of them."""
    rows = [r for r in records.read(path) if r["source"] == "template"][:count]
    hits = [answer(model, encoder, r["prompt"], 0.0, 0)[0].strip() == r["response"] for r in rows]
    return {"questions": len(rows), "exact": sum(hits) / len(hits)}


def distinct(texts: Sequence[str], n: int = 2) -> float:
    """Share of different word n-grams over all texts."""
    grams = [g for t in texts for g in zip(*(t.lower().split()[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / max(len(grams), 1)


def stories(model: Any, encoder: Encoder) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Measures of greedy and sampled five-sentence stories, and the stories themselves."""
    shown: list[dict[str, Any]] = []
    results = {}
    for mode, temperature, times in (("greedy", 0.0, 1), ("sampled", SAMPLING_TEMPERATURE, SAMPLED)):
        texts, ended = [], []
        for subject in STORIES:
            prompt = f"Tell me a story in five sentences about {subject}."
            for seed in range(times):
                text, stopped = answer(model, encoder, prompt, temperature, seed)
                texts.append(text)
                ended.append(stopped)
                shown.append({"mode": mode, "seed": seed, "prompt": prompt, "text": text, "ended": stopped})
        five = [filters.sentences(t) == 5 for t, stopped in zip(texts, ended, strict=True) if stopped]
        results[mode] = {
            "ended": sum(ended) / len(ended),
            "five_sentences": sum(five) / max(len(five), 1),
            "distinct_2": distinct(texts),
            "repeated_4grams": sum(map(filters.repeated_share, texts)) / len(texts),
        }
    return results, shown


def print_table(result: dict[str, Any]) -> None:
    print(f"{'held out':<20}{'documents':>10}{'tokens':>9}{'nats/token':>12}{'bits/byte':>11}")
    for name, row in result["held_out"].items():
        print(
            f"{name:<20}{row['documents']:>10.0f}{row['tokens']:>9.0f}"
            f"{row['nats_per_token']:>12.3f}{row['bits_per_byte']:>11.3f}"
        )
    for name, share in result["minimal_pairs"].items():
        print(f"{'minimal pairs: ' + name:<40}{share:>8.1%}")
    print(f"{'cloze, four choices':<40}{result['cloze']:>8.1%}")
    print(f"{'facts, exact greedy answer':<40}{result['facts']['exact']:>8.1%}")
    for mode, row in result["stories"].items():
        for name, value in row.items():
            print(f"{f'stories, {mode}: {name}':<40}{value:>8.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--eval", type=Path, required=True, help="folder of minimal_pairs and cloze")
    parser.add_argument("--heldout", type=Path, required=True)
    parser.add_argument("--facts", type=int, default=150, help="most questions to answer")
    parser.add_argument("--samples", type=Path, help="write the stories here, as JSON lines")
    args = parser.parse_args()
    model, encoder = fourfold.load(args.checkpoint), Encoder(args.checkpoint)
    story_measures, samples = stories(model, encoder)
    result = {
        "held_out": held_out(model, encoder, args.heldout),
        "minimal_pairs": minimal_pairs(model, encoder, args.eval / "minimal_pairs.jsonl"),
        "cloze": cloze(model, encoder, args.eval / "cloze.jsonl"),
        "facts": facts(model, encoder, args.heldout, args.facts),
        "stories": story_measures,
    }
    if args.samples:
        records.write(args.samples, samples)
    for sample in samples:
        if sample["mode"] == "greedy":
            print(f"> {sample['prompt']}\n{sample['text']}\n")
    print_table(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
