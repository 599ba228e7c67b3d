"""`python tests/ascend/entry_points.py` writes entry_points.toml: the aclnn functions that our model calls.

One list a generation, from the tests of emulated/model.py.  A CANN that lacks one of them cannot run us.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import emulation

HERE = Path(__file__).parent
_HEAD = "# The aclnn functions that our model calls, as run under the emulator; written by entry_points.py.\n"


def _section(generation: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        outcome = emulation.run_tests(generation, HERE / "emulated" / "model.py", Path(folder))
    if outcome.code:
        raise SystemExit(outcome.output)
    names = "".join(f'  "{name}",\n' for name in outcome.entry_points)
    return f"\n{generation} = [\n{names}]\n"


if __name__ == "__main__":
    sections = [_section(generation) for generation in emulation.CHIPS]
    (HERE / "entry_points.toml").write_text(_HEAD + "".join(sections))
