"""The report of one run as one JSON document that can be sent: what ran where, and nothing of who ran it.

No path, host name, user name, text or process list goes into it.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

import torch

import fourfold
from fourfold import kernels
from fourfold.conformance.report import Report

FORMAT = "fourfold verify 1"
# Settings that change what runs; their values are words and numbers.
_SETTINGS = re.compile(
    r"FOURFOLD_\w+|OMP_NUM_THREADS|TASK_QUEUE_ENABLE|ASCEND_(RT_VISIBLE_DEVICES|LAUNCH_BLOCKING)"
)
_PATH = re.compile(r"(/[^\s:,;'\"()]+)+/")
_SMI_SECONDS = 20


def sheet(report: Report, checkpoint: str, seconds: float) -> dict[str, Any]:
    """checkpoint: what it is called; seconds: the whole run."""
    kind = torch.device(report.device).type
    return _without_paths(
        {
            "format": FORMAT,
            "fourfold": fourfold.__version__,
            "checkpoint": checkpoint,
            "seconds": round(seconds, 1),
            "settings": {name: value for name, value in os.environ.items() if _SETTINGS.fullmatch(name)},
            "operations": kernels.table(kind),
            "npu_smi": npu_smi() if kind == "npu" else None,
            **report.to_json(),
        }
    )


def npu_smi() -> list[str] | None:
    """What `npu-smi info` says of driver, firmware and devices; None where it is missing or fails."""
    try:
        done = subprocess.run(
            ["npu-smi", "info"], capture_output=True, text=True, timeout=_SMI_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    # Its second table is of the processes that run there.
    return done.stdout.partition("Process id")[0].splitlines()


def _without_paths(value: Any) -> Any:
    """The same with folders left out of every text."""
    if isinstance(value, dict):
        return {key: _without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_paths(part) for part in value]
    return _PATH.sub("…/", value) if isinstance(value, str) else value
