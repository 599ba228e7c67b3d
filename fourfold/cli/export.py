"""`fourfold export`: a checkpoint in the official layout, tensors kept or converted."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fourfold.cli import console, options
from fourfold.cli.written import Written
from fourfold.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from fourfold.weights.quantise import TensorError

_OWNER = re.compile(r"^(?:layers|mtp)\.\d+\.|(?<=\.experts)\.\d+(?=\.)|\.weight$")


def export(
    src: Annotated[str, typer.Argument(help="Checkpoint folder or repo id.")],
    dst: Annotated[Path, typer.Argument(help="Folder to write.")],
    experts: Annotated[
        Literal["keep", "fp4", "fp8", "bf16"], typer.Option(help="How to store the routed experts.")
    ] = "keep",
    linears: Annotated[
        Literal["keep", "fp8", "bf16"], typer.Option(help="How to store the other quantised matrices.")
    ] = "keep",
    recipe: Annotated[
        Literal["w8a8", "w4a8", "bf16"] | None,
        typer.Option("--format", help="Convert all of it, as Ascend A2 and A3 want it.", show_default="none"),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="TEXT",
            help="With --format: a text file that is run through the model, to weigh errors by its inputs.",
            show_default="none",
        ),
    ] = None,
    shard_size: options.ShardSize = 5.0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Write a checkpoint anew, converted or not.

    Untouched tensors keep every bit, conversions follow the published rules. FP4 becomes FP8 only where that
    loses nothing; otherwise the tensor and its block are named. --format says what it costs, and goes on
    where the same command was interrupted.
    """
    if recipe is not None and (experts, linears) != ("keep", "keep"):
        raise typer.BadParameter("--format decides for all tensors; leave out --experts and --linears")
    if recipe is None and calibrate is not None:
        raise typer.BadParameter("--calibrate needs --format w8a8 or w4a8")
    from fourfold.weights.export import export_checkpoint, export_recipe

    start = time.perf_counter()
    errors: list[TensorError] = []
    size = options.shard_bytes(shard_size)
    if recipe is None:
        export_checkpoint(src, dst, experts=experts, linears=linears, shard_size=size, overwrite=overwrite)
    else:
        importance = None if calibrate is None else _importance(src, calibrate)
        errors = export_recipe(src, dst, recipe, importance=importance, shard_size=size, overwrite=overwrite)
    written = Written.in_folder(dst, time.perf_counter() - start)
    if json:
        asked = {"source": src, "experts": experts, "linears": linears, "format": recipe}
        rows = [error.to_json() for error in errors]
        console.document({**asked, **written.to_json(), "errors": rows})
        return
    console.note(written.line())
    if errors:
        _print(errors)
    console.answer(f"{dst}\n")


def _importance(src: str, text: Path) -> dict[str, Tensor]:
    from fourfold.calibration import calibrate
    from fourfold.weights.hub import resolve

    try:
        words = text.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{text}: cannot be read ({error.strerror}); give a text file") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{text}: is not UTF-8 text ({error.reason}); convert it first") from error
    found = calibrate(resolve(src), words)
    unmet = f"; {found.unmet} experts met none of them" if found.unmet else ""
    console.note(f"calibrated on {found.tokens:,} tokens{unmet}")
    return found.importance


def kind_of(name: str) -> str:
    """layers.3.ffn.experts.7.w1.weight -> ffn.experts.w1"""
    return _OWNER.sub("", name)


def _print(errors: Sequence[TensorError]) -> None:
    """One row a kind of matrix: its relative errors, with the search and without clipping."""
    kinds: dict[tuple[str, str], list[TensorError]] = defaultdict(list)
    for error in errors:
        kinds[kind_of(error.name), error.format].append(error)
    weighted = any(error.weighted is not None for error in errors)
    rows = []
    for (kind, fmt), members in kinds.items():
        worst = max(e.error for e in members)
        columns = [_mean([e.error for e in members]), worst, _mean([e.unclipped for e in members])]
        if weighted:
            columns += [_mean([e.weighted for e in members]), _mean([e.weighted_unclipped for e in members])]
        clip = _mean([e.clip for e in members])
        numbers = ["-" if value is None else f"{value:.2%}" for value in columns]
        rows.append((kind, str(len(members)), fmt, "-" if clip is None else f"{clip:.2f}", *numbers))
    title = "Relative error of the converted matrices"
    heads = ["", "tensors", "format", "clip", "mean", "worst", "not clipped"]
    if weighted:
        heads += ["weighted", "weighted, not clipped"]
    console.table(title, heads, rows)
    console.answer("\n")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
