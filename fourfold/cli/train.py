"""`fourfold train`: a training run from its configuration."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.cli import console, options

if TYPE_CHECKING:
    from fourfold.train.trainer import TrainResult


def _changes(texts: list[str] | None) -> list[str]:
    for text in texts or ():
        key, separator, _ = text.partition("=")
        if not separator or not all(key.partition(".")):
            raise typer.BadParameter(f"{text} is not of the form SECTION.KEY=VALUE")
    return texts or []


def train(
    config: Annotated[Path, typer.Argument(help="The run's CONFIG.toml.")],
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            callback=_changes,
            help="Change one value; may be repeated.",
        ),
    ] = None,
    threads: options.Threads = 0,
    json: options.Json = False,
) -> None:
    """Train a model, or go on with a run.

    A run whose folder (run.dir) already holds checkpoints continues from the last.
    """
    from fourfold.train.config import load_config
    from fourfold.train.parallel import speaks
    from fourfold.train.trainer import train as run

    overrides = list(set or [])
    if threads:
        overrides.append(f"run.threads={threads}")
    result = run(load_config(config, overrides))
    if not speaks():
        return
    if json:
        console.document(_document(result))
        return
    held_out = "" if result.held_out_loss is None else f", held-out {result.held_out_loss:.4f}"
    console.note(
        f"{result.steps:,} steps, {result.tokens:,} tokens in {console.number(result.seconds)} s; "
        f"loss {result.loss:.4f}{held_out} nats a token"
    )
    console.answer(f"{result.export or result.folder}\n")


def _document(result: TrainResult) -> dict[str, Any]:
    return {
        "folder": str(result.folder),
        "export": None if result.export is None else str(result.export),
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 3),
        "loss": _finite(result.loss),
        "held_out_loss": _finite(result.held_out_loss),
    }


def _finite(value: float | None) -> float | None:
    """JSON has no word for the others."""
    return value if value is not None and math.isfinite(value) else None
