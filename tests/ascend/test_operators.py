"""The forms of operations on npu, in a process of their own: the device changes torch for all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_forms_on_the_python_device():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        str(HERE / "operators.py"),
    ]
    done = subprocess.run(
        command, cwd=HERE.parent.parent, env=dict(os.environ), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
