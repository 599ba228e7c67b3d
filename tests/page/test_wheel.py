"""The page is in what users install."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.page

ROOT = Path(__file__).parents[2]


def test_a_wheel_has_the_pages_files(tmp_path):
    settings = ["-C", "wheel.cmake=false", "-C", f"build-dir={tmp_path / 'build'}"]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path)]
    subprocess.run([*command, *settings, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("fourfold-*.whl")
    own = {file.name: file.read_bytes() for file in (ROOT / "fourfold" / "server" / "static").iterdir()}
    with zipfile.ZipFile(wheel) as packed:
        found = {
            name.rpartition("/")[2]: packed.read(name)
            for name in packed.namelist()
            if name.startswith("fourfold/server/static/")
        }
    assert found == own
