"""The document of a run: one row for each engine, number of threads and context; and the same as a table."""

from __future__ import annotations

from typing import Any

from fourfold.bench.engines import Cell
from fourfold.bench.machine import peak_of
from fourfold.bench.run import Outcome, Settings, summary
from fourfold.bench.traffic import PRODUCTS, decode_bytes, prefill_operations
from fourfold.config import ModelConfig
from fourfold.weights.inspect import CheckpointReport

OWN = "fourfold"


def rows(
    outcome: Outcome, settings: Settings, facts: CheckpointReport, config: ModelConfig, numerics: str
) -> list[dict[str, Any]]:
    """The document's `results`.

    Rates in tokens a second, each as best, median and samples.  first_token_seconds: of a prompt of context +
    `prompt` tokens.  Our own rows also say what a decoded token must read and a prompt's token must multiply,
    and the shares of the machine's best bandwidth and peak that this makes; the others, how many times faster
    ours is (`times`), best against best.
    """
    found = []
    for threads in dict.fromkeys(settings.threads):
        for cell in settings.cells(threads):
            own = _row(OWN, outcome, cell)
            own |= _shares(own, outcome, cell, facts, config, numerics)
            found.append(own)
            for name, other in list(outcome.samples):
                if other == cell and name != OWN:
                    row = _row(name, outcome, cell)
                    found.append(
                        {**row, "times": {key: _times(own, row, key) for key in ("prefill", "decode")}}
                    )
    return found


def limits(outcome: Outcome) -> list[dict[str, Any]]:
    """The document's `limits`: what the machine reached beside each cell, bytes and operations a second."""
    return [
        {
            "threads": cell.threads,
            "context": cell.context,
            "prompt": cell.prefill,
            "read_bytes_per_second": summary(samples),
            "operations_per_second": outcome.peaks[cell.threads],
        }
        for cell, samples in outcome.bandwidth.items()
    ]


def _row(name: str, outcome: Outcome, cell: Cell) -> dict[str, Any]:
    samples = outcome.samples[name, cell]
    prefill = summary([sample.prefill for sample in samples])
    fill = next((sample.fill_seconds for sample in samples if sample.fill_seconds is not None), None)
    if cell.context == 0:
        fill = 0.0
    first = None if fill is None or prefill is None else fill + cell.prefill / prefill["best"]
    return {
        "engine": name,
        "threads": cell.threads,
        "context": cell.context,
        "prompt": cell.prefill,
        "prefill": prefill,
        "decode": summary([sample.decode for sample in samples]),
        "first_token_seconds": first,
    }


def _shares(
    row: dict[str, Any],
    outcome: Outcome,
    cell: Cell,
    facts: CheckpointReport,
    config: ModelConfig,
    numerics: str,
) -> dict[str, Any]:
    read, operations = decode_bytes(facts, config, cell.context, numerics), prefill_operations(facts, config)
    peaks, kind = outcome.peaks[cell.threads], PRODUCTS[numerics]
    multiplied = row["prefill"]["best"] * operations
    decode = row["decode"]
    return {
        "bytes_per_token": read,
        "bandwidth_share": decode and decode["best"] * read / max(outcome.bandwidth[cell]),
        "operations_per_token": operations,
        "compute_type": kind,
        "compute_share": multiplied / peak_of(peaks, kind),
        "library_share": multiplied / peaks[f"{kind} torch"],
    }


def _times(own: dict[str, Any], peer: dict[str, Any], key: str) -> float | None:
    if own[key] is None or peer[key] is None:
        return None
    return own[key]["best"] / peer[key]["best"]


def table(document: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows for people; "-" is what was not measured."""
    columns = (
        "engine",
        "threads",
        "context",
        "prompt",
        "prefill tok/s",
        "median",
        "decode tok/s",
        "median",
        "first token s",
        "of bandwidth",
        "of peak",
        "ours ×, prefill",
        "ours ×, decode",
    )
    return columns, [_line(row) for row in document["results"]]


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    rates = []
    for key in ("prefill", "decode"):
        rates += [_number(row[key] and row[key]["best"]), _number(row[key] and row[key]["median"])]
    times = row.get("times", {})
    return (
        row["engine"],
        str(row["threads"]),
        f"{row['context']:,}",
        f"{row['prompt']:,}",
        *rates,
        _number(row["first_token_seconds"]),
        _percent(row.get("bandwidth_share")),
        _percent(row.get("compute_share")),
        *(_number(times.get(key), "×") for key in ("prefill", "decode")),
    )


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "-"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}{unit}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
