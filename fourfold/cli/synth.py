"""`fourfold synth`: a random checkpoint with the shapes of a published model, whole or reduced."""

from __future__ import annotations

import json as json_format
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fourfold.cli import console, options
from fourfold.cli.written import Written


def _model(like: str) -> str:
    from fourfold.weights.synth import PRESETS

    if like not in PRESETS and not Path(like).exists():
        raise typer.BadParameter(f"{like!r} is neither one of {', '.join(PRESETS)} nor a config.json's path")
    return like


def _overrides(texts: list[str] | None) -> list[str]:
    for text in texts or ():
        if not text.partition("=")[0] or "=" not in text:
            raise typer.BadParameter(f"{text} is not of the form KEY=VALUE")
    return texts or []


def synth(
    dst: Annotated[Path, typer.Argument(help="Folder to write.")],
    like: Annotated[
        str,
        typer.Option(callback=_model, help="flash, pro, flash-base, pro-base, or the path of a config.json."),
    ] = "flash",
    layers: Annotated[int | None, typer.Option(help="Main layers.", min=1, show_default="all")] = None,
    experts: Annotated[
        int | None, typer.Option(help="Routed experts a layer.", min=1, show_default="all")
    ] = None,
    hidden: Annotated[
        int | None, typer.Option(help="hidden_size.", min=1, show_default="the model's")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            callback=_overrides,
            help="Any other key of config.json, value in JSON.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same weights.", min=0)] = 0,
    shard_size: options.ShardSize = 5.0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Write a checkpoint of random weights.

    In the official layout, with real shapes or reduced ones, streamed to disk: to size a machine, to test.
    """
    from fourfold.weights.synth import synthesise

    start = time.perf_counter()
    config = synthesise(
        dst,
        like=like,
        layers=layers,
        experts=experts,
        hidden=hidden,
        overrides=dict(map(_override, set or ())),
        seed=seed,
        shard_size=options.shard_bytes(shard_size),
        overwrite=overwrite,
    )
    written = Written.in_folder(dst, time.perf_counter() - start)
    if json:
        sizes = {"layers": config.num_hidden_layers, "experts": config.n_routed_experts, "seed": seed}
        console.document({"like": like, **sizes, **written.to_json()})
        return
    console.note(
        f"{config.num_hidden_layers} layers, {config.n_routed_experts} experts, {written.line()}, seed {seed}"
    )
    console.answer(f"{dst}\n")


def _override(text: str) -> tuple[str, Any]:
    """KEY=VALUE; a value that is no JSON is a string."""
    key, _, value = text.partition("=")
    try:
        return key, json_format.loads(value)
    except (ValueError, RecursionError):
        return key, value
