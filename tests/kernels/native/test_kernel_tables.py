"""kernel_test.cpp, built and run on this machine: every kernel table against definitions and the scalar one.

Where there is no compiler this checks what the package then says of itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fourfold.kernels import cpu

ROOT = Path(__file__).parents[3]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("clang++")


def run(*command: str | Path) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_every_table_of_this_machine(tmp_path: Path) -> None:
    if COMPILER is None or shutil.which("cmake") is None:
        said = cpu.describe()
        assert bool(said["reason"]) == (said["isa"] == "reference")
        return
    run("cmake", "-S", ROOT, "-B", tmp_path, "-DCMAKE_BUILD_TYPE=Release", "-DFOURFOLD_KERNEL_TEST=ON")
    run("cmake", "--build", tmp_path, "--parallel", str(os.cpu_count()))
    lines = run(tmp_path / "kernel_test").splitlines()
    assert lines[-1] == "0 failed"
    assert all(re.match(r"ok +\w+ ", line) for line in lines[:-1])
    tested = {line.split()[1] for line in lines[:-1]}
    assert "scalar" in tested
    if cpu.native is not None:
        assert tested == set(cpu.native.supported_isas())
