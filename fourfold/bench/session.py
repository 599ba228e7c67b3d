"""A whole run: machine, engines, measurement, document."""

from __future__ import annotations

import datetime
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fourfold
from fourfold.bench import machine as machines
from fourfold.bench.accuracy import accuracy
from fourfold.bench.engines import Engine, WorkerEngine
from fourfold.bench.peers import LlamaPeer, open_peers
from fourfold.bench.report import OWN, limits, rows
from fourfold.bench.run import Settings, run
from fourfold.config import ModelConfig
from fourfold.errors import RequestError
from fourfold.weights.inspect import inspect_checkpoint

FORMAT = 2
"""Of the document; grows when a key changes its meaning."""


def bench(
    folder: Path,
    name: str,
    settings: Settings,
    numerics: str,
    *,
    device: str = "cpu",
    device_memory: str | None = None,
    ram: str | None = None,
    expert_copy: Path | None = None,
    compare: Sequence[str] = (),
    llamas: Sequence[LlamaPeer] = (),
    with_accuracy: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure the checkpoint `folder`; the document that `fourfold bench --json` prints.

    device: of our own engine, and whose limits are measured; peers run on the CPU.  device_memory, ram,
    expert_copy: of our own engine, as `fourfold.load` takes them.
    warn is told what makes the figures suspect and which peers are missing.  Raises the errors of
    `fourfold.load`; RequestError: contexts that the model has no positions for.
    """
    facts, config = inspect_checkpoint(folder), ModelConfig.from_file(folder)
    _check(settings, config)
    before = machines.activity()
    for found in machines.complaints(before, max(settings.threads)):
        warn(found)
    progress("loading fourfold")
    copy = None if expert_copy is None else str(expert_copy)
    engines: list[Engine] = [
        WorkerEngine(
            OWN,
            folder,
            numerics=numerics,
            device=device,
            device_memory=device_memory,
            ram=ram,
            expert_copy=copy,
        )
    ]
    try:
        peers, missing = open_peers(compare, llamas, folder, progress)
        engines += peers
        for reason in missing.values():
            warn(f"not compared: {reason}")
        machine = machines.Machine(max(settings.threads), device)
        outcome = run(engines[0], peers, machine, settings, progress)
        for reason in outcome.left_out.values():
            warn(f"left out from there on: {reason}")
        reports = {e.name: e.report() for e in engines if e.name not in outcome.left_out}
    finally:
        for engine in engines:
            engine.close()
    after = machines.activity()
    exactness = None
    if with_accuracy:
        progress("accuracy")
        exactness = accuracy(folder, numerics, device)
    return {
        "format": FORMAT,
        "fourfold": fourfold.__version__,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["fourfold", *sys.argv[1:]]),
        "machine": machines.describe(device),
        "activity": {"before": before, "after": after},
        "model": {
            "name": name,
            "numerics": numerics,
            "layers": config.num_hidden_layers,
            "parameters_total": facts.parameters_total,
            "parameters_active": facts.parameters_active,
            "bytes_total": facts.bytes_total,
            "weight_bytes_per_token": facts.bytes_per_token,
        },
        "settings": {
            **vars(settings),
            "device_memory": device_memory,
            "ram": ram,
            "probe_bytes": machine.bytes,
        },
        "engines": reports,
        "not_compared": {**missing, **outcome.left_out},
        "limits": limits(outcome),
        "results": rows(outcome, settings, facts, config, numerics),
        "accuracy": exactness,
    }


def _check(settings: Settings, config: ModelConfig) -> None:
    if settings.longest > config.max_position_embeddings:
        raise RequestError(
            f"the longest context and what follows it are {settings.longest:,} tokens; this model has "
            f"positions for {config.max_position_embeddings:,}: choose shorter --contexts or --prefill"
        )


def _commit() -> str | None:
    """Of the checkout that we run from, with + if it has changes; None if we are installed elsewhere."""
    root = Path(fourfold.__file__).parents[1]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", os.fspath(root), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    return f"{commit}{'+' if git('status', '--porcelain', '--untracked-files=no') else ''}" or None
