"""How long does choosing a token take, besides the model?  The sampler's settings, and constraints' masks.

    python -m bench.choosing [--tokenizers FILE ...] [--calls 200] [--threads 1] [--out results.json]

Sampler: from a model's logits to a token, for vocabularies of the shipped model's and of V4's size, with 100
tokens of prompt.  Masks, for each tokenizer (a folder, or a tokenizer.json; by default the shipped model's):
the first grammar, with which the vocabulary's tree is made; others; and from a token of an answer to the mask
of the next, which a worker computes while the model computes.  Milliseconds; medians, and the slowest mask.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fourfold
from bench.gemv import commit
from fourfold import Constraint, Sampling
from fourfold.engine.chooser import Chooser
from fourfold.engine.grammar import Grammars
from fourfold.engine.sampler import sample
from fourfold.kernels.cpu.processor import processor
from fourfold.tokenizer import Tokenizer

V4 = 129280
"""Its vocabulary."""
_NOTHING = torch.empty(0, dtype=torch.int64)

SAMPLINGS = {
    "greedy": Sampling(temperature=0.0),
    "temperature 1": Sampling(seed=1),
    "top_p 0.95": Sampling(top_p=0.95, seed=1),
    "top_k 50": Sampling(top_k=50, seed=1),
    "min_p 0.05": Sampling(min_p=0.05, seed=1),
    "top_p 0.95, all penalties": Sampling(
        top_p=0.95, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.5, seed=1
    ),
}
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"enum": ["friend", "family", "work"]}},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
ANSWERS = {
    "JSON": (
        Constraint.json(),
        json.dumps({"story": "Once upon a time there was a small dog. " * 8, "words": [1, 2, 3]}),
    ),
    "a JSON schema": (
        Constraint.json(_PERSON),
        json.dumps(
            {"name": "Mia of the little house by the river", "age": 7, "tags": ["friend", "family"] * 8}
        ),
    ),
    "an expression": (Constraint.regex(r"([A-Z][a-z]+ \d{4}-\d{2}-\d{2}\n)+"), "Monday 2026-11-23\n" * 20),
}


def milliseconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - begun)


def _draw(chooser: Chooser, logits: Tensor, position: int) -> int:
    return sample(chooser.processed(logits), chooser.sampling, position)


def sampler_times(size: int, calls: int) -> dict[str, float]:
    """Of each setting, the median over positions.  Probabilities fall with the square of the rank: a few
    tokens have nearly all."""
    ranks = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    logits = -2 * (ranks + 1).float().log()
    found = {}
    for name, sampling in SAMPLINGS.items():
        chooser = Chooser(sampling, range(100), size, _NOTHING)
        draw = partial(_draw, chooser, logits)
        found[name] = statistics.median(milliseconds(partial(draw, position)) for position in range(calls))
    return found


def mask_times(tokenizer: Tokenizer) -> dict[str, Any]:
    """What the first grammar costs; for each constraint what its grammar costs, and its masks."""
    grammars = Grammars(tokenizer, tokenizer.vocab_size, tokenizer.vocab_size - 1)
    found: dict[str, Any] = {"first": milliseconds(partial(grammars.start, Constraint.choice(["yes", "no"])))}
    for name, (constraint, answer) in ANSWERS.items():
        compiled = milliseconds(partial(grammars.start, constraint))
        masks = grammars.start(constraint)
        masks.after()
        times = []
        for token in tokenizer.encode(answer):
            begun = time.perf_counter()
            masks.accept([token])
            masks.after()
            times.append(1000 * (time.perf_counter() - begun))
        found[name] = {
            "grammar": compiled, "mask": statistics.median(times), "slowest": max(times), "tokens": len(times)
        }  # fmt: skip
    grammars.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokenizers", type=Path, nargs="+", default=[fourfold.shipped_model()])
    parser.add_argument("--calls", type=int, default=200, help="draws of each setting")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    own = fourfold.tokenizer(fourfold.shipped_model())
    drawn = {size: sampler_times(size, options.calls) for size in (own.vocab_size, V4)}
    print(f"{'ms a draw, of ids':40}" + "".join(f"{size:>10,}" for size in drawn))
    for name in SAMPLINGS:
        print(f"{name:40}" + "".join(f"{times[name]:10.2f}" for times in drawn.values()))
    masks = {}
    for path in options.tokenizers:
        tokenizer = fourfold.tokenizer(path)
        found = masks[tokenizer.vocab_size] = mask_times(tokenizer)
        print(f"{tokenizer.vocab_size:,} ids; the first grammar {found['first']:.0f} ms")
        for name in ANSWERS:
            figures = (f"{key} {found[name][key]:.2f}" for key in ("grammar", "mask", "slowest"))
            print(f"  {name:38}{', '.join(figures)}")
    document = {
        "question": "choosing",
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "torch": torch.__version__,
        "commit": commit(),
        "command": " ".join(["python", "-m", "bench.choosing", *sys.argv[1:]]),
        "note": options.note,
        "threads": options.threads,
        "sampler_milliseconds": drawn,
        "mask_milliseconds": masks,
    }
    print(json.dumps(document))
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
