"""`fourfold distil`: a teacher's answers, a data set, a student."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

from fourfold.cli import console
from fourfold.cli.evaluate import cells
from fourfold.errors import RequestError

if TYPE_CHECKING:
    from fourfold.distil.collect import Tally
    from fourfold.distil.config import DistilConfig
    from fourfold.distil.student import Taught


def distil(
    config: Annotated[Path, typer.Argument(help="CONFIG.toml (docs/distil.md).")],
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one value; may be repeated."),
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(min=0, help="Spend no more, by the teacher's prices.", show_default="the file's"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be asked, and ask nothing.")
    ] = False,
) -> None:
    """Ask a teacher, make a data set of its answers, and train a student on it.

    Goes on where it was stopped; no question is asked twice.
    """
    try:
        from fourfold.distil.client import Client
    except ImportError as error:
        raise RequestError(f"{error.name} is not installed; pip install 'fourfold[train]'") from error
    from fourfold.distil.collect import collect, read_answers
    from fourfold.distil.config import load_distil_config
    from fourfold.distil.dataset import write_dataset
    from fourfold.distil.judge import judge
    from fourfold.distil.prompts import questions

    overrides = [*(set or []), *([f"budget.cost={max_cost}"] if max_cost is not None else [])]
    settings = load_distil_config(config, overrides)
    if settings.student.train:
        from fourfold.distil.student import training

        training(settings, Path(settings.dir) / "data.jsonl")  # so that what is wrong shows before it costs
    asked = questions(settings)
    if dry_run:
        _preview(settings, asked)
        return
    with _Bar("asking") as bar:
        tally = collect(settings, asked, Client(settings.teacher, settings.budget), bar)
    console.note(
        f"{tally.answered:,} of {tally.questions:,} questions answered, {tally.refused} refused, cost "
        f"{tally.cost:.4f}" + (f"; stopped at the budget of {settings.budget.cost:g}" if tally.capped else "")
    )
    wanted = {question.key(f"{settings.teacher.url} {settings.teacher.model}") for question in asked}
    answers = [answer for answer in read_answers(Path(settings.dir)) if answer["key"] in wanted]
    marks = None
    if settings.filters.judge:
        with _Bar("judging") as bar:
            marks = judge(settings, answers, Client(settings.teacher, settings.budget), bar)
    data = write_dataset(settings, answers, marks)
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in data.dropped.items())
    console.note(f"{data.kept:,} answers kept in {data.path}" + (f"; not kept: {dropped}" if dropped else ""))
    if not settings.student.train:
        console.answer(f"{data.path}\n")
        return
    from fourfold.distil.student import teach

    _report(teach(settings, data.path))


class _Bar:
    """A progress bar on stderr that takes a Tally."""

    def __init__(self, name: str) -> None:
        columns = (*Progress.get_default_columns()[:3], TimeElapsedColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task(name)

    def __call__(self, tally: Tally) -> None:
        self._progress.update(self._task, completed=tally.answered, total=tally.questions)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._progress.stop()


def _preview(settings: DistilConfig, asked: list[Any]) -> None:
    """The most that it can cost, and the first question."""
    teacher = settings.teacher
    into = sum(len(m["content"].encode()) for question in asked for m in question.messages)
    out = sum(question.max_tokens for question in asked)
    most = (into * teacher.input_price + out * teacher.output_price) / 1e6
    console.answer(
        f"{len(asked):,} questions to {teacher.model} at {teacher.url}; at most {out:,} tokens of answers, "
        f"cost at most {most:.4f}\nfirst: {asked[0].messages[-1]['content']}\n"
    )


def _report(taught: Taught) -> None:
    for name, figures in taught.after.items():
        rows = [(figure.name, *cells(figure, taught.before[name][i])) for i, figure in enumerate(figures)]
        console.table(name, ("", "after", "before", "difference (95 %)", ""), rows)
    console.answer(f"{taught.result.export}\n")
