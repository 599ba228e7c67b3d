"""The model and torch_npu's operators under the emulated CANN, generation by generation (`make test-ascend`)."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import emulation

pytestmark = pytest.mark.ascend
FILES = ("runtime", "operators", "model", "full_size")
TABLE = HERE / "entry_points.toml"


@pytest.mark.parametrize("generation", emulation.CHIPS)
@pytest.mark.parametrize("file", FILES)
def test_emulated(generation: str, file: str, tmp_path: Path) -> None:
    outcome = emulation.run_tests(generation, HERE / "emulated" / f"{file}.py", tmp_path)
    assert outcome.code == 0, outcome.output
    if file == "model":
        known = tomllib.loads(TABLE.read_text())[generation]
        assert outcome.entry_points == known, "other entry points ran: python tests/ascend/entry_points.py"
