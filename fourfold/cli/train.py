"""`fourfold train`: a training run from its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli import console, options


def train(
    config: Annotated[Path, typer.Argument(help="The run's CONFIG.toml.")],
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value; may be repeated."),
    ] = None,
    threads: options.Threads = 0,
) -> None:
    """Train a model, or go on with a run.

    A run whose folder (run.dir) already holds checkpoints continues from the last.
    """
    from fourfold.train.config import load_config
    from fourfold.train.trainer import train as run

    changes = list(set or [])
    if threads:
        changes.append(f"run.threads={threads}")
    result = run(load_config(config, changes))
    held_out = "" if result.held_out_loss is None else f", held-out {result.held_out_loss:.4f}"
    console.note(
        f"{result.steps:,} steps, {result.tokens:,} tokens in {console.number(result.seconds)} s; "
        f"loss {result.loss:.4f}{held_out} nats a token"
    )
    console.answer(f"{result.export or result.folder}\n")
