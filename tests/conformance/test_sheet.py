"""The document of a run that users send."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fourfold import kernels
from fourfold.conformance.report import Check, Report, broken
from fourfold.conformance.sheet import FORMAT, npu_smi, sheet

SMI = """| npu-smi 25.2.0    Version: 25.2.0 |
| 0     910B1       | OK            | 95.2 |
+-------------------+---------------+------+
| NPU     Chip      | Process id    | Process name |
| 0       0         | 4711          | secret_job   |
"""


def test_it_says_what_ran_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOURFOLD_ASCEND_TIER", "T0")
    report = Report("cpu", {"device": "some chip"})
    report.add(Check(group="kernel", name="linear", detail="", value=0.0, bound=1e-5, seconds=0.25))
    found = json.loads(json.dumps(sheet(report, "tiny", 12.34)))
    assert (found["format"], found["checkpoint"], found["seconds"]) == (FORMAT, "tiny", 12.3)
    assert found["settings"]["FOURFOLD_ASCEND_TIER"] == "T0" and found["npu_smi"] is None
    assert set(found["operations"]) == set(kernels.OPERATIONS)
    assert found["checks"][0]["seconds"] == 0.25 and found["passed"]


def test_neither_paths_nor_processes_are_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "npu-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{SMI}END\n")
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    report = Report("cpu", {"device": "some chip"})
    report.add(broken("kernel", "rope", "", RuntimeError(f"{tmp_path}/x.cpp:7: no such operator")))
    text = json.dumps(sheet(report, "tiny", 1.0))
    assert "x.cpp:7: no such operator" in text and str(tmp_path) not in text
    lines = npu_smi()
    assert lines is not None and "910B1" in lines[1]
    assert "secret_job" not in "\n".join(lines)


def test_without_npu_smi_there_is_nothing_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert npu_smi() is None
