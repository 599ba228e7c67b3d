"""`fourfold export`: a checkpoint in the official layout, tensors kept or converted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from fourfold.cli import console, options
from fourfold.cli.written import Written


def export(
    src: Annotated[str, typer.Argument(help="Checkpoint folder or repo id.")],
    dst: Annotated[Path, typer.Argument(help="Folder to write.")],
    experts: Annotated[
        Literal["keep", "fp4", "fp8", "bf16"], typer.Option(help="How to store the routed experts.")
    ] = "keep",
    linears: Annotated[
        Literal["keep", "fp8", "bf16"], typer.Option(help="How to store the other quantised matrices.")
    ] = "keep",
    shard_size: options.ShardSize = 5.0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Write a checkpoint anew, converted or not.

    Untouched tensors keep every bit, conversions follow the published rules. FP4 becomes FP8 only where that
    loses nothing; otherwise the tensor and its block are named.
    """
    from fourfold.weights.export import export_checkpoint

    start = time.perf_counter()
    folder = export_checkpoint(
        src,
        dst,
        experts=experts,
        linears=linears,
        shard_size=options.shard_bytes(shard_size),
        overwrite=overwrite,
    )
    written = Written.in_folder(folder, time.perf_counter() - start)
    if json:
        console.document({"source": src, "experts": experts, "linears": linears, **written.to_json()})
        return
    console.note(written.line())
    console.answer(f"{folder}\n")
