"""`python -m tests.ascend.tables` writes the tables that tests compare with; with names, those alone.

entry_points: entry_points.toml, the aclnn functions that our model calls, one list a generation, from the
tests of emulated/model.py; a CANN that lacks one of them cannot run us.  operators: torch_npu_operators.txt,
the aten operators that torch_npu implements, from the list that its wheel carries.  memory: the table in
docs/ascend.md, from emulated/full_size.py.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from tests.ascend import emulation
from tests.ascend.emulator import build

HERE = Path(__file__).parent
ENTRY_POINTS = HERE / "entry_points.toml"
OPERATORS = HERE / "torch_npu_operators.txt"
PAGE = HERE.parents[1] / "docs" / "ascend.md"
_MEMORY = re.compile(r"(?<=^\| generation \| model \|).*?\n(\|[-|: ]+\n)((?:\|.*\n)+)", re.M)
_HEAD = "# The aclnn functions that our model calls, as run under the emulator; written by tables.py.\n"


def native_operators(wheel: Path) -> str:
    """One name a line, with its overload."""
    text = (wheel / "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml").read_text()
    supported = re.split(r"^\w+:", text.partition("\nsupported:")[2], maxsplit=1, flags=re.M)[0]
    names = set(re.findall(r"func: ([\w.]+)|^- ([\w.]+)$", supported, flags=re.M))
    return "".join(f"{first or second}\n" for first, second in sorted(names, key="".join))


def memory_rows(text: str) -> list[list[str]]:
    """The cells of the rows that full_size.py reports."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| A")]


def same_memory(measured: list[list[str]], generation: str) -> bool:
    """Whether the page has these rows, sizes within a tenth of a GiB and of their own."""
    committed = [row for row in memory_rows(PAGE.read_text()) if row[0] == generation]
    return len(measured) == len(committed) > 0 and all(map(_alike, measured, committed))


def _alike(row: list[str], other: list[str]) -> bool:
    sizes = zip(row[3:], other[3:], strict=True)
    return row[:3] == other[:3] and all(abs(float(a) - float(b)) <= 0.1 + 0.1 * float(b) for a, b in sizes)


def _measured(generation: str, file: str) -> emulation.Outcome:
    with tempfile.TemporaryDirectory() as folder:
        outcome = emulation.run_tests(generation, HERE / "emulated" / f"{file}.py", Path(folder))
    if outcome.code:
        raise SystemExit(outcome.output)
    return outcome


def _entry_points_of(generation: str) -> str:
    names = "".join(f'  "{name}",\n' for name in _measured(generation, "model").entry_points)
    return f"\n{generation} = [\n{names}]\n"


def _write_entry_points() -> None:
    ENTRY_POINTS.write_text(_HEAD + "".join(map(_entry_points_of, emulation.CHIPS)))


def _write_operators() -> None:
    OPERATORS.write_text(native_operators(build.wheel()))


def _write_memory() -> None:
    rows = "".join(f"{_measured(generation, 'full_size').measured}\n" for generation in emulation.CHIPS)
    page = PAGE.read_text()
    table = _MEMORY.search(page)
    assert table is not None
    PAGE.write_text(page[: table.start(2)] + rows + page[table.end(2) :])


_TABLES = {"entry_points": _write_entry_points, "operators": _write_operators, "memory": _write_memory}

if __name__ == "__main__":
    for name in sys.argv[1:] or _TABLES:
        _TABLES[name]()
