"""How far is `fourfold plan` from what `fourfold bench` measured?  Predicts each speed, prints the error.

    python bench/plan_error.py BENCH.json ... [--model PATH ...] [--fit] [--out results.json]

The model is the one that the bench names, unless there is a --model for each file.  Bandwidth and matmul peak
are those that the bench measured beside the speeds, for each number of threads; a file without them is
refused.  --fit looks for the numbers of efficiency.toml that predict these files best, prints them, and goes
on with them.  The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import fourfold
from fourfold.errors import FourfoldError, RequestError
from fourfold.plan import Demand, Efficiency, Figure, Hardware, Machine, Plan, efficiencies, find_model, plan

_ENGINE = "fourfold"
_PEAK = "bf16 torch"  # the peak that the efficiency of prefill is a share of
_FITTED = (
    "core_read",
    "prefill_compute",
    "attention_compute",
    "stream_passes",
    "layer_seconds",
    "unshared_seconds",
)
_STEPS = 600


@dataclass(frozen=True)
class Measured:
    """One speed of our engine, beside what the machine reached in the same minutes.

    decode: of tokens after `context` others; prefill: of `prompt` tokens after them.  read: bytes a second;
    peak: operations a second.
    """

    kind: Literal["decode", "prefill"]
    threads: int
    context: int
    prompt: int
    tokens_per_second: float
    read: float
    peak: float


def measured(bench: Mapping[str, Any]) -> Iterator[Measured]:
    """Every speed of ours in a bench document: the one place that knows how it spells its keys.

    RequestError: results or limits are missing.
    """
    limits = {_place(row): row for row in bench.get("limits", ())}
    settings = bench.get("settings", bench)
    kinds: tuple[Literal["decode", "prefill"], ...] = ("decode", "prefill")
    for row in bench.get("results", ()):
        if row.get("engine", _ENGINE) != _ENGINE:
            continue
        limit = limits.get(_place(row), {})
        read = _best(limit.get("read_bytes_per_second"))
        peak = _best(limit.get("operations_per_second", {}).get(_PEAK))
        for kind in kinds:
            rate = _best(row.get(kind))
            if rate is None:
                continue
            if read is None or peak is None:
                raise RequestError(f"limits of {row.get('threads')} threads lack read bandwidth or {_PEAK!r}")
            prompt = int(row.get("prompt", settings.get("prefill", 512)))
            yield Measured(kind, int(row["threads"]), int(row["context"]), prompt, rate, read, peak)


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a row one of its kind."""
    return row.get("threads"), row.get("context"), row.get("prompt")


def _model(bench: Mapping[str, Any]) -> str | None:
    """The checkpoint's path, or its name."""
    model = bench.get("model")
    found = model.get("path", model.get("name")) if isinstance(model, Mapping) else model
    return found if isinstance(found, str) else None


def _best(value: Any) -> float | None:
    """A rate, or the best of a summary of rates."""
    found = value.get("best") if isinstance(value, Mapping) else value
    return float(found) if found else None


def predicted(row: Measured, demand: Demand, table: dict[str, Efficiency]) -> float:
    """Tokens a second of the same work on hardware of the same bandwidth and peak."""
    if row.kind == "decode":
        return _plan(row, demand, table, max(row.context, 1)).decode[1][0].tokens_per_second
    before = _prefill_seconds(row, demand, table, row.context) if row.context else 0.0
    return row.prompt / (_prefill_seconds(row, demand, table, row.context + row.prompt) - before)


def _prefill_seconds(row: Measured, demand: Demand, table: dict[str, Efficiency], prompt: int) -> float:
    found = _plan(row, demand, table, prompt).prefill
    assert found is not None
    return found.seconds


def _plan(row: Measured, demand: Demand, table: dict[str, Efficiency], tokens: int) -> Plan:
    # The bench ran here, so the model fits: memory is not what is asked.
    values = {
        "memory_gb": 1e6,
        "bandwidth_gb_s": row.read / 1e9,
        "bf16_tflops": row.peak / 1e12,
        "cores": row.threads,
    }
    device = Hardware(
        name="bench",
        title="the machine of the bench",
        kind="cpu",
        figures={name: Figure(value=value, source="the bench's file") for name, value in values.items()},
        measured=True,
    )
    return plan(demand, Machine(device=device), context=tokens, prompt=tokens, efficiency=table)


def compare(bench: Mapping[str, Any], demand: Demand, table: dict[str, Efficiency]) -> list[dict[str, Any]]:
    """A row for each measured speed: its fields, `predicted`, and `error` (0.1: predicted 10 % too fast)."""
    rows = []
    for row in measured(bench):
        guess = predicted(row, demand, table)
        error = guess / row.tokens_per_second - 1
        rows.append({**dataclasses.asdict(row), "predicted": guess, "error": error})
    if not rows:
        raise RequestError("the bench has no decode and no prefill speed of fourfold")
    return rows


def fitted(
    benches: Sequence[tuple[Mapping[str, Any], Demand]], table: dict[str, Efficiency]
) -> dict[str, Efficiency]:
    """`table` with the numbers of _FITTED changed so that the largest errors become small.

    A random walk from where the table stands, the same each time: errors count by their fourth power.
    """

    def cost(candidate: dict[str, Efficiency]) -> float:
        return sum(
            math.log1p(row["error"]) ** 4
            for bench, demand in benches
            for row in compare(bench, demand, candidate)
        )

    draw = random.Random(0)
    least = cost(table)
    for step in range(_STEPS):
        reach = 0.3 * (1 - step / _STEPS)
        candidate = dict(table)
        for name in _FITTED:
            value = table[name].value * math.exp(draw.gauss(0, reach))
            share = name.endswith("_compute")  # which nothing exceeds
            candidate[name] = dataclasses.replace(table[name], value=min(value, 1.0) if share else value)
        if (found := cost(candidate)) < least:
            table, least = candidate, found
    return table


def main(arguments: list[str] | None = None) -> int:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bench", type=Path, nargs="+")
    parser.add_argument(
        "--model", nargs="+", help="checkpoint, config.json or published name of each; default: the bench's"
    )
    parser.add_argument("--fit", action="store_true", help="with the numbers that predict these files best")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    options = parser.parse_args(arguments)
    if options.model is not None and len(options.model) != len(options.bench):
        parser.error(f"{len(options.bench)} files and {len(options.model)} models; allowed: one for each")
    try:
        benches = [
            _read(file, model)
            for file, model in zip(options.bench, options.model or repeat(None), strict=False)
        ]
        table = efficiencies()
        if options.fit:
            table = fitted(benches, table)
            print("".join(f"{name}: {table[name].value:.3g}\n" for name in _FITTED), end="")
        rows = [
            {"bench": file.name, **row}
            for file, (bench, demand) in zip(options.bench, benches, strict=True)
            for row in compare(bench, demand, table)
        ]
    except FourfoldError as error:
        parser.error(f"{', '.join(map(str, options.bench))}: {error}")
    for row in rows:
        print(
            f"{row['bench']}: {row['kind']:8} {row['threads']} threads, context {row['context']:7,}: "
            f"measured {row['tokens_per_second']:9.2f}, predicted {row['predicted']:9.2f} tok/s, "
            f"error {row['error']:+.1%}"
        )
    document = {
        "question": "plan_error",
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "efficiency": {key: entry.value for key, entry in table.items()},
        "worst": max(abs(row["error"]) for row in rows),
        "rows": rows,
    }
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))
    return 0


def _read(file: Path, model: str | None) -> tuple[dict[str, Any], Demand]:
    """A bench's document, and the Demand of its model.  RequestError: neither says which model it is."""
    bench = json.loads(file.read_text(encoding="utf-8"))
    name = model or _model(bench)
    if name is None:
        raise RequestError("no model is named; add --model")
    shipped = fourfold.shipped_model()
    return bench, find_model(str(shipped) if name == shipped.name else name)


if __name__ == "__main__":
    sys.exit(main())
