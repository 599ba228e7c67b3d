"""The conformance certificate of a machine: kernels, golden vectors and a checkpoint, measured against
bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from fourfold.conformance.checkpoint import check_checkpoint
from fourfold.conformance.golden import check_golden
from fourfold.conformance.kernels import check_kernels
from fourfold.conformance.report import Check, Report, machine

__all__ = ["Check", "Report", "certify"]


def certify(
    folder: Path | None, device: str = "cpu", progress: Callable[[str], None] = lambda _: None
) -> Report:
    """Run every check on `device`; `folder` is the checkpoint to certify too, None for none.

    progress is told the group of checks that begins and each check as it is done.
    Raises the errors of `fourfold.load` for a checkpoint or a device that cannot be used.
    """
    report = Report(device, machine(device))
    groups: list[tuple[str, Iterator[Check]]] = [
        ("kernels", check_kernels(device)),
        ("golden vectors", check_golden(device)),
    ]
    if folder is not None:
        groups.append(("checkpoint", check_checkpoint(folder, device)))
    for title, checks in groups:
        progress(title)
        for check in checks:
            report.checks.append(check)
            progress(f"{title}: {check.name}")
    return report
