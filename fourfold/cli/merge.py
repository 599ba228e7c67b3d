"""`fourfold merge`: a base and its adapter become one checkpoint."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fourfold.cli import console, options
from fourfold.cli.export import kind_of
from fourfold.cli.written import Written

if TYPE_CHECKING:
    from fourfold.weights.merge import MergedTensor


def merge(
    base: Annotated[str, typer.Argument(help="Checkpoint folder or repo id.")],
    adapter: Annotated[Path, typer.Argument(help="Folder of an adapter that was trained on it.")],
    dst: Annotated[Path, typer.Argument(help="Folder to write.")],
    changed: Annotated[
        Literal["keep", "bf16"],
        typer.Option(help="How to store the matrices that the adapter changes: keep their format, or bf16."),
    ] = "keep",
    shard_size: options.ShardSize = 5.0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Add an adapter to its base, as a checkpoint in the official layout.

    Untouched tensors keep every byte. Those that the adapter changes are rounded again, and what that costs
    is said: "lost" is the rounding error as a part of the change, and near 100 % little of the change is
    left; then --changed bf16 keeps it, or fourfold serve --adapter uses the adapter as it is.
    """
    from fourfold.weights.merge import merge as run

    start = time.perf_counter()
    size = options.shard_bytes(shard_size)
    tensors = run(base, adapter, dst, changed=changed, shard_size=size, overwrite=overwrite)
    written = Written.in_folder(dst, time.perf_counter() - start)
    if json:
        rows = [tensor.to_json() for tensor in tensors]
        console.document(
            {"base": base, "adapter": str(adapter), "changed": changed, **written.to_json(), "tensors": rows}
        )
        return
    console.note(written.line())
    _print(tensors)
    console.answer(f"{dst}\n")


def _print(tensors: Sequence[MergedTensor]) -> None:
    """One row a kind of matrix."""
    kinds: dict[tuple[str, str], list[MergedTensor]] = defaultdict(list)
    for tensor in tensors:
        kinds[kind_of(tensor.name), tensor.format].append(tensor)
    rows = []
    for (kind, fmt), members in kinds.items():
        means = [fmean(getattr(one, name) for one in members) for name in ("change", "error", "lost")]
        worst = max(one.lost for one in members)
        rows.append((kind, str(len(members)), fmt, *(f"{value:.2%}" for value in (*means, worst))))
    heads = ("", "tensors", "format", "change", "error", "lost", "worst")
    console.table("Matrices that the adapter changed", heads, rows)
    console.answer("\n")
