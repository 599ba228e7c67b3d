"""`fourfold verify`: the conformance certificate of this machine."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

import fourfold
from fourfold.cli import console, options
from fourfold.cli.model import model_name, use_threads
from fourfold.conformance import Check, Report, certify
from fourfold.conformance.sheet import sheet
from fourfold.loading import usable_device
from fourfold.weights.hub import resolve

_APART = ("streams", "distribution")  # checks of one name that measure different things


def verify(
    path: Annotated[
        str | None, typer.Argument(help="Checkpoint folder or repo id.", show_default="the shipped model")
    ] = None,
    device: options.Device = "cpu",
    threads: options.Threads = 0,
    report_file: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            callback=options.new_file,
            help="Write all of it there as JSON, to be sent: versions, operators, errors, times; no paths.",
            show_default="none",
        ),
    ] = None,
    json: options.Json = False,
) -> int:
    """Certify this machine.

    Every kernel against its reference, the golden vectors, on an accelerator two layers of V4-Flash at full
    width, and the checkpoint PATH: this device's kernels against the reference, one path against another to
    the bit, deployed and fast numerics against exact ones. Says what was not exercised. Exits with 1 when a
    value is out of its bound.
    """
    begun = time.perf_counter()
    use_threads(threads)
    usable_device(device)
    folder = resolve(path or fourfold.shipped_model())
    with _progress() as progress:
        report = certify(folder, device, progress)
    if report_file is not None:
        document = sheet(report, model_name(path), time.perf_counter() - begun)
        report_file.write_text(dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        console.note(f"{report_file}: the report")
    if json:
        console.document({"checkpoint": str(path or folder.name), **report.to_json()})
    else:
        _print(report, path or folder.name)
    failed = [check for check in report.checks if not check.passed]
    for check in failed:
        sign = "below" if check.at_least else "above"
        why = check.error or f"{check.value:.3g} is {sign} {check.bound:g}"
        console.note(f"{check.group} {check.name}, {check.detail}: {why}")
    for item in report.not_exercised:
        console.note(str(item))
    console.note(f"{len(report.checks) - len(failed)} of {len(report.checks)} checks passed on {device}")
    return 0 if report.passed else 1


def _print(report: Report, name: str) -> None:
    """Machine, then one table a group; kernels and decode steps one line each operation, at their worst."""
    for key, value in report.machine.items():
        console.answer(f"{key:8} {value}\n")
    console.answer("\n")
    kernels = [check for check in report.checks if check.group == "kernel"]
    golden = [check for check in report.checks if check.group == "golden"]
    checkpoint = [check for check in report.checks if check.group == "checkpoint"]
    flash = [check for check in report.checks if check.group == "slice"]
    columns = ("", "checks", "max error", "mean error", "relative", "bound", "")
    console.table("Kernels against the reference (relative to the rms)", columns, list(_worst(kernels)))
    console.answer("\n")
    title = "Golden vectors, exact numerics (relative to the standard deviation)"
    console.table(title, columns, list(_worst(golden)))
    console.answer("\n")
    if flash:
        rows = [(f"{check.name}: {check.detail}", *_numbers(check), _time(check.seconds)) for check in flash]
        columns = ("", "max error", "mean error", "value", "bound", "", "took")
        console.table("Two layers of V4-Flash, random weights, against the CPU", columns, rows)
        console.answer("\n")
    rows = [(f"{check.name}: {check.detail}", *_numbers(check)) for check in checkpoint]
    console.table(f"Checkpoint {name}", ("", "max error", "mean error", "value", "bound", ""), rows)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{console.number(seconds * 1000)} ms"


def _worst(checks: list[Check]) -> Iterator[tuple[str, ...]]:
    """One row a name (those of _APART: a row each), with the check that comes nearest to its bound."""
    groups: dict[str, list[Check]] = defaultdict(list)
    for check in checks:
        name = f"{check.name}: {check.detail}" if check.name in _APART else check.name
        groups[name].append(check)
    for name, members in groups.items():
        worst = max(members, key=lambda check: (not check.passed, check.value / (check.bound or 1e-30)))
        yield (name, str(len(members)), *_numbers(worst))


def _numbers(check: Check) -> tuple[str, ...]:
    absolute = ("-" if value is None else f"{value:.1e}" for value in (check.max_abs, check.mean_abs))
    value = f"{check.value:.3g}" if check.at_least else f"{check.value:.2e}"
    bound = f"{'≥' if check.at_least else '≤'} {check.bound:.2g}"
    return (*absolute, value, bound, "ok" if check.passed else "FAILED")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Yields tell(what): a line that changes on a terminal, one remark a group elsewhere."""
    screen = console.stderr_console()
    if not screen.is_terminal:
        yield lambda what: None if ":" in what else console.note(f"checking {what}")
        return
    with screen.status("fourfold: checking") as status:
        yield lambda what: status.update(f"fourfold: checking {what}")
