"""The model and torch_npu's operators under the emulated CANN, on each generation (`make test-ascend`)."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.ascend import emulation
from tests.ascend.emulator import build
from tests.ascend.tables import ENTRY_POINTS, OPERATORS, native_operators

pytestmark = pytest.mark.ascend
HERE = Path(__file__).parent
FILES = ("runtime", "operators", "model", "full_size")


@pytest.mark.parametrize("generation", emulation.CHIPS)
@pytest.mark.parametrize("file", FILES)
def test_emulated(generation: str, file: str, tmp_path: Path) -> None:
    outcome = emulation.run_tests(generation, HERE / "emulated" / f"{file}.py", tmp_path)
    assert outcome.code == 0, outcome.output
    if file == "model":
        known = tomllib.loads(ENTRY_POINTS.read_text())[generation]
        assert outcome.entry_points == known, "other functions ran: python -m tests.ascend.tables"


def test_the_list_of_torch_npus_operators_is_that_of_the_wheel() -> None:
    assert OPERATORS.read_text() == native_operators(build.wheel())
