"""Run by test_emulated.py: `fourfold verify`, the first thing to do with a new NPU, from beginning to end.

The slice of Flash is narrower here: decoding weights of full width takes the emulator many minutes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fourfold import kernels
from fourfold.cli.main import main
from fourfold.conformance import kernels as measured
from fourfold.conformance import slice as slices
from fourfold.conformance.golden import FOLDER as GOLDEN


def test_verify_runs_to_the_end_and_writes_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = {"vocab_size": 8192, "num_nextn_predict_layers": 0, "moe_intermediate_size": 256}
    monkeypatch.setattr(slices, "_SHAPE", {"layers": 2, "experts": 8, "hidden": 512, "overrides": narrow})
    monkeypatch.setattr(measured, "_TIMED", 1)
    file = tmp_path / "verify.json"
    assert main(["verify", str(GOLDEN), "--device", "npu", "--report", str(file)]) == 0
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["machine"]["generation"].startswith("A") and found["machine"]["CANN"] != "unknown"
    assert set(found["operations"]) == set(kernels.OPERATIONS)
    groups = {check["group"] for check in found["checks"]}
    assert groups == {"kernel", "golden", "slice", "checkpoint"}
    timed = [check for check in found["checks"] if check["group"] in ("kernel", "slice")]
    assert all(check["seconds"] > 0 and check["reference_seconds"] > 0 for check in timed)
    assert not [item for item in found["not_exercised"] if "Flash" in item["what"]]
