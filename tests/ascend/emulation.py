"""Runs tests under the real torch_npu wheel over the emulated CANN, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.ascend.emulator import build

ROOT = Path(__file__).parents[2]
EXPORTS = "FOURFOLD_TEST_EXPORTS"
CHIPS = {"A2": "Ascend910B1", "A3": "Ascend910_9391", "A5": "Ascend950DT_950x"}
"""Generation -> the chip whose name the emulator reports."""

MEASURED = "measured: "
"""How a test begins a line that reports something; `make test-ascend` prints it."""
# What torch_npu says, once, where it brings a tensor to the CPU and back because it lacks an operator.
_FALLBACK = "fall back to run on the CPU"


@dataclass(frozen=True)
class Outcome:
    """entry_points: aclnn names that ran, sorted."""

    code: int
    output: str
    entry_points: list[str]

    @property
    def measured(self) -> str:
        """What the tests report, a line each."""
        lines = self.output.splitlines()
        return "\n".join(line.removeprefix(MEASURED) for line in lines if line.startswith(MEASURED))


def run_tests(generation: str, file: Path, folder: Path, exports: Path | None = None) -> Outcome:
    """Run a file of tests on npu:0 of an emulated generation.

    folder: for notes of the run.  exports: where the converted checkpoints are, for shipped.py.
    """
    used = folder / "entry_points"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=_environment(generation, used) | ({} if exports is None else {EXPORTS: str(exports)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    code = 1 if _FALLBACK in done.stdout else done.returncode
    names = set(used.read_text().split()) if used.exists() else set()
    return Outcome(code, done.stdout, sorted(names))


def _environment(generation: str, used: Path) -> dict[str, str]:
    # A CANN that is really there must not be found: nothing here is meant to touch a device.
    outer = {
        name: value for name, value in os.environ.items() if not name.startswith(("ASCEND_", "TORCH_DEVICE_"))
    }
    return outer | {
        "CANN_EMU_SOC": CHIPS[generation],
        "CANN_EMU_USED": str(used),
        "LD_LIBRARY_PATH": str(build.libraries()),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(build.wheel())]),
    }
