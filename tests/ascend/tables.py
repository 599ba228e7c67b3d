"""`python -m tests.ascend.tables` writes the two tables that tests compare with.

entry_points.toml: the aclnn functions that our model calls, one list a generation, from the tests of
emulated/model.py; a CANN that lacks one of them cannot run us.  torch_npu_operators.txt: the aten operators
that torch_npu implements, from the list that its wheel carries.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from tests.ascend import emulation
from tests.ascend.emulator import build

HERE = Path(__file__).parent
ENTRY_POINTS = HERE / "entry_points.toml"
OPERATORS = HERE / "torch_npu_operators.txt"
_HEAD = "# The aclnn functions that our model calls, as run under the emulator; written by tables.py.\n"


def native_operators(wheel: Path) -> str:
    """One name a line, with its overload."""
    text = (wheel / "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml").read_text()
    supported = re.split(r"^\w+:", text.partition("\nsupported:")[2], maxsplit=1, flags=re.M)[0]
    names = set(re.findall(r"func: ([\w.]+)|^- ([\w.]+)$", supported, flags=re.M))
    return "".join(f"{first or second}\n" for first, second in sorted(names, key="".join))


def _entry_points_of(generation: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        outcome = emulation.run_tests(generation, HERE / "emulated" / "model.py", Path(folder))
    if outcome.code:
        raise SystemExit(outcome.output)
    names = "".join(f'  "{name}",\n' for name in outcome.entry_points)
    return f"\n{generation} = [\n{names}]\n"


if __name__ == "__main__":
    OPERATORS.write_text(native_operators(build.wheel()))
    ENTRY_POINTS.write_text(_HEAD + "".join(map(_entry_points_of, emulation.CHIPS)))
