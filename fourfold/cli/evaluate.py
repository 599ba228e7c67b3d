"""`fourfold eval`: what a model can do, from local files, alone or beside another."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from fourfold.cli import console, options
from fourfold.cli.groups import Loading
from fourfold.cli.model import open_model
from fourfold.protocol import PromptFormat
from fourfold.protocol import prompt_format as format_of

if TYPE_CHECKING:
    from fourfold.evaluation.measures import Figure
    from fourfold.evaluation.tasks import Task

Figures = dict[str, list["Figure"]]


def evaluate(
    path: Annotated[str, typer.Argument(help="Checkpoint folder or repo id.", metavar="MODEL")],
    tasks: Annotated[list[Path], typer.Argument(help="Files of tasks, .jsonl or .jsonl.xz (docs/eval.md).")],
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A second model, on the same records.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Records of each file.", min=1, show_default="all")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Of an answer that must match.", min=1)] = 128,
    prompt_format: options.PromptFormat = None,
    numerics: options.Numerics = "fast",
    device: options.Device = "cpu",
    threads: options.Threads = 0,
    json: options.Json = False,
) -> None:
    """Measure a model on local files: perplexity, choices, pairs, exact answers.

    Figures come with 95 % intervals; with --against so does the difference.
    """
    from fourfold.evaluation.tasks import read_task

    read = [read_task(task, limit) for task in tasks]
    measured = partial(
        _figures,
        tasks=read,
        prompt_format=prompt_format,
        max_tokens=max_tokens,
        loading=Loading(device=device, numerics=numerics, threads=threads),
    )
    ours = measured(path)
    theirs = None if against is None else measured(against)
    if json:
        console.document(_document(path, ours, against, theirs))
        return
    alone, beside = ("value", "95 %"), ("model", "against", "difference (95 %)", "")
    columns = ("", "records", *(alone if theirs is None else beside))
    for task in read:
        rows = []
        for i, figure in enumerate(ours[task.name]):
            other = None if theirs is None else theirs[task.name][i]
            rows.append((figure.name, f"{len(task.records):,}", *cells(figure, other)))
        console.table(task.name, columns, rows)


def _figures(
    path: str,
    *,
    tasks: list[Task],
    prompt_format: PromptFormat | None,
    max_tokens: int,
    loading: Loading,
) -> Figures:
    """The figures of every task of one model, which is gone when this returns."""
    from fourfold.evaluation.measures import Evaluator, texts

    opened = open_model(path, loading)
    evaluator = Evaluator(opened.model, prompt_format or format_of(opened.name), max_tokens)
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        found = {}
        for task in tasks:
            line = bar.add_task(task.name, total=texts(task))
            found[task.name] = evaluator.run(task, lambda done, line=line: bar.update(line, completed=done))  # type: ignore[misc]
        return found


def cells(figure: Figure, other: Figure | None) -> tuple[str, ...]:
    """A figure with its interval; beside another: both, the difference with its interval, the verdict."""
    from fourfold.evaluation.intervals import difference, interval

    if other is None:
        low, high = interval(figure.ratio)
        return _written(figure, figure.ratio.value), f"{_written(figure, low)} to {_written(figure, high)}"
    gap, low, high = difference(figure.ratio, other.ratio)
    better = (high < 0) if figure.lower else (low > 0)
    worse = (low > 0) if figure.lower else (high < 0)
    return (
        _written(figure, figure.ratio.value),
        _written(other, other.ratio.value),
        f"{_written(figure, gap, '+')} ({_written(figure, low, '+')} to {_written(figure, high, '+')})",
        "better" if better else "worse" if worse else "not sure",
    )


def _written(figure: Figure, value: float, sign: str = "") -> str:
    return f"{value:{sign}.1%}" if figure.percent else f"{value:{sign}.3f}"


def _document(path: str, ours: Figures, against: str | None, theirs: Figures | None) -> dict[str, Any]:
    from fourfold.evaluation.intervals import difference, interval

    tasks: dict[str, list[dict[str, Any]]] = {}
    for name, figures in ours.items():
        tasks[name] = []
        for i, figure in enumerate(figures):
            row: dict[str, Any] = {
                "figure": figure.name,
                "records": len(figure.ratio.above),
                "value": figure.ratio.value,
                "interval": interval(figure.ratio),
                "lower_is_better": figure.lower,
            }
            if theirs is not None:
                other = theirs[name][i].ratio
                gap, low, high = difference(figure.ratio, other)
                row |= {"against": other.value, "difference": gap, "difference_interval": (low, high)}
            tasks[name].append(row)
    return {"model": path, "against": against, "tasks": tasks}
