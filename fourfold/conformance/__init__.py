"""The conformance certificate of a machine: kernels, golden vectors and a checkpoint, with their bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from fourfold.conformance.checkpoint import check_checkpoint
from fourfold.conformance.golden import check_golden
from fourfold.conformance.kernels import check_kernels
from fourfold.conformance.report import Check, Finding, NotExercised, Report, broken, machine
from fourfold.conformance.slice import check_slice
from fourfold.loading import usable_device

__all__ = ["Check", "NotExercised", "Report", "broken", "certify"]


def certify(
    folder: Path | None, device: str = "cpu", progress: Callable[[str], None] = lambda _: None
) -> Report:
    """Run every check on `device`; `folder` is the checkpoint to certify too, None for none.

    On an accelerator also two layers of V4-Flash at full width.  progress is told the group of checks that
    begins and each check as it is done, one short line each.  A group that fails on the device is a failed
    check; the others run on.  Raises the errors of `fourfold.load` for a checkpoint or a device that cannot
    be used.
    """
    usable_device(device)
    report = Report(device, machine(device))
    groups: list[tuple[str, Iterator[Finding]]] = [
        ("kernels", check_kernels(device)),
        ("golden vectors", check_golden(device)),
    ]
    if usable_device(device).type != "cpu":
        groups.append(("slice of Flash", check_slice(device)))
    if folder is not None:
        groups.append(("checkpoint", check_checkpoint(folder, device)))
    for title, findings in groups:
        progress(title)
        try:
            for finding in findings:
                report.add(finding)
                if isinstance(finding, Check):
                    progress(f"{title}: {finding.name}")
        except RuntimeError as error:  # of torch or the device; ours are FourfoldErrors
            report.add(broken(title.split()[0], "ended early", "what follows was not measured", error))
    return report
