"""`fourfold export`: a checkpoint in the official layout, tensors kept or converted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli import console, options


def export(
    src: Annotated[str, typer.Argument(help="Checkpoint folder or repo id.")],
    dst: Annotated[Path, typer.Argument(help="Folder to write.")],
    experts: Annotated[str, typer.Option(help="Routed experts: keep, fp4, fp8 or bf16.")] = "keep",
    linears: Annotated[str, typer.Option(help="Other quantised matrices: keep, fp8 or bf16.")] = "keep",
    shard_size: options.ShardSize = 5.0,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a checkpoint anew, converted or not.

    Untouched tensors keep every bit, conversions follow the published rules. FP4 becomes FP8 only where that
    loses nothing; otherwise the tensor and its block are named.
    """
    from fourfold.weights.export import export_checkpoint

    folder = export_checkpoint(
        src,
        dst,
        experts=experts,
        linears=linears,
        shard_size=options.shard_bytes(shard_size),
        overwrite=overwrite,
    )
    console.note(f"{console.size(_bytes(folder))} in {len(list(folder.glob('*.safetensors')))} files")
    console.answer(f"{folder}\n")


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
