"""`fourfold synth`: a random checkpoint with the shapes of a published model, whole or reduced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fourfold.cli import console, options


def synth(
    dst: Annotated[Path, typer.Argument(help="Folder to write.")],
    like: Annotated[
        str, typer.Option(help="flash, pro, flash-base, pro-base, or the path of a config.json.")
    ] = "flash",
    layers: Annotated[int | None, typer.Option(help="Main layers.", show_default="all")] = None,
    experts: Annotated[int | None, typer.Option(help="Routed experts a layer.", show_default="all")] = None,
    hidden: Annotated[int | None, typer.Option(help="hidden_size.", show_default="the model's")] = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other key of config.json, value in JSON."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same weights.", min=0)] = 0,
    shard_size: options.ShardSize = 5.0,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a checkpoint of random weights.

    In the official layout, with real shapes or reduced ones, streamed to disk: to size a machine, to test.
    """
    from fourfold.weights.synth import synthesise

    config = synthesise(
        dst,
        like=like,
        layers=layers,
        experts=experts,
        hidden=hidden,
        overrides=dict(_override(text) for text in set or ()),
        seed=seed,
        shard_size=options.shard_bytes(shard_size),
        overwrite=overwrite,
    )
    stored = sum(file.stat().st_size for file in dst.glob("*.safetensors"))
    console.note(
        f"{config.num_hidden_layers} layers, {config.n_routed_experts} experts, {console.size(stored)}, "
        f"seed {seed}"
    )
    console.answer(f"{dst}\n")


def _override(text: str) -> tuple[str, Any]:
    """KEY=VALUE; a value that is no JSON is a string."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise typer.BadParameter(f"--set {text} is not of the form KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
