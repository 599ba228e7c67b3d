"""The model and torch_npu's operators under the emulated CANN, on each generation (`make test-ascend`)."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path

import pytest

import fourfold
from fourfold.weights.export import export_recipe
from tests.ascend import emulation
from tests.ascend.emulator import build
from tests.ascend.tables import ENTRY_POINTS, OPERATORS, memory_rows, native_operators, same_memory

pytestmark = pytest.mark.ascend
HERE = Path(__file__).parent
FILES = ("runtime", "operators", "model", "shipped", "engine", "full_size")
RUNS = [*itertools.product(FILES, emulation.CHIPS), ("first_run", "A2")]


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as each recipe converts it."""
    folder = tmp_path_factory.mktemp("exports")
    for recipe in ("w8a8", "w4a8"):
        export_recipe(fourfold.shipped_model(), folder / recipe, recipe, progress=False)
    return folder


@pytest.mark.parametrize(("file", "generation"), RUNS)
def test_emulated(file: str, generation: str, tmp_path: Path, exports: Path) -> None:
    outcome = emulation.run_tests(generation, HERE / "emulated" / f"{file}.py", tmp_path, exports)
    assert outcome.code == 0, outcome.output
    print(outcome.measured)
    if file == "model":
        known = tomllib.loads(ENTRY_POINTS.read_text())[generation]
        assert outcome.entry_points == known, "others ran: python -m tests.ascend.tables entry_points"
    if file == "full_size":
        rows = memory_rows(outcome.measured)
        assert same_memory(rows, generation), "docs/ascend.md differs: python -m tests.ascend.tables memory"


def test_the_list_of_torch_npus_operators_is_that_of_the_wheel() -> None:
    assert OPERATORS.read_text() == native_operators(build.wheel())
