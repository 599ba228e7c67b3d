"""`fourfold inspect`: what a checkpoint is, from its headers or its config.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import fourfold
from fourfold.cli import console, options

if TYPE_CHECKING:
    from fourfold.weights.inspect import CheckpointReport


def inspect(
    path: Annotated[
        str | None,
        typer.Argument(help="Checkpoint folder, repo id or config.json.", show_default="the shipped model"),
    ] = None,
    json: options.Json = False,
) -> None:
    """Show what a checkpoint is.

    Layers by kind, parameters total and active, bytes by format, and KV bytes at long contexts. Only headers
    are read.
    """
    from fourfold.weights.inspect import inspect_checkpoint

    report = inspect_checkpoint(path or str(fourfold.shipped_model()))
    if json:
        console.document(report.to_json())
        return
    console.table(Path(report.path).name, ("", ""), _facts(report), justify="left")
    console.answer("\n")
    formats = [
        (name, console.size(size), f"{size / report.bytes_total:.1%}")
        for name, size in report.bytes_by_format.items()
    ]
    console.table("Stored as", ("format", "size", "share"), formats)
    console.answer("\n")
    lengths = list(next(iter(report.kv_bytes.values())))
    rows = [
        (name, *(console.size(sizes[length]) for length in lengths))
        for name, sizes in report.kv_bytes.items()
    ]
    console.table("KV cache of one sequence", ("format", *(f"{length} tokens" for length in lengths)), rows)


def _facts(report: CheckpointReport) -> list[tuple[str, str]]:
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.layers.items() if count)
    where = (
        f"{report.tensors:,} tensors in {report.files} files" if report.has_weights else "config.json only"
    )
    return [
        (
            "layers",
            f"{sum(report.layers.values())} ({kinds}), {report.hash_layers} of them routed by token id",
        ),
        ("multi-token prediction", f"{report.mtp_layers} block{'' if report.mtp_layers == 1 else 's'}"),
        ("width, vocabulary", f"{report.hidden_size:,}, {report.vocab_size:,}"),
        (
            "experts",
            f"{report.experts} a layer in {report.expert_format}, {report.experts_per_token} a token",
        ),
        ("context", f"{report.max_position_embeddings:,} tokens"),
        (
            "parameters",
            f"{console.amount(report.parameters_total)}, {console.amount(report.parameters_active)} active",
        ),
        ("of MTP, not counted", console.amount(report.parameters_mtp)),
        ("weights", f"{console.size(report.bytes_total)}, {where}"),
        ("read for a token", console.size(report.bytes_per_token)),
    ]
