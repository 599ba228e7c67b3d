"""The whole model on a pure-Python npu, in a process of its own, and no CUDA in our sources."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import fourfold

HERE = Path(__file__).parent
PACKAGE = Path(fourfold.__file__).parent


def test_the_model_on_the_python_device():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        str(HERE / "python_model.py"),
    ]
    environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_kernels_of_triton_name_cuda():
    """Beside those, the names that users give to devices, and what reports call them."""
    allowed = PACKAGE / "kernels" / "triton"
    calls = re.compile(r"torch\.cuda\b|\.cuda\(|\.is_cuda\b|torch\.version\.cuda")
    found = {
        str(file.relative_to(PACKAGE)): names
        for file in PACKAGE.rglob("*.py")
        if not file.is_relative_to(allowed) and (names := calls.findall(file.read_text(encoding="utf-8")))
    }
    assert found == {}
