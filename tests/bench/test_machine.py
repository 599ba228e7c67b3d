"""The machine's own limits: measured by the extension, and by torch where there is none."""

from __future__ import annotations

import pytest

from fourfold.bench import machine
from fourfold.kernels import cpu


@pytest.mark.parametrize("native", [True, False])
def test_bandwidth_and_peaks(native, quick_machine, monkeypatch):
    if not native:
        monkeypatch.setattr(cpu, "native", None)
    found = machine.Machine(threads=2)
    assert found.bytes >= 4 << 20
    assert all(found.read_bandwidth(threads) > 1e7 for threads in (1, 2))
    peaks = found.peaks(1)
    assert {"f32 torch", "bf16 torch"} <= peaks.keys()
    assert ("f32 generic" in peaks) == (native and cpu.available())
    assert all(value > 1e6 for value in peaks.values())
    assert machine.peak_of(peaks, "f32") == max(v for k, v in peaks.items() if k.startswith("f32"))


def test_unknown_multiplier_is_refused():
    assert cpu.native is not None
    with pytest.raises(ValueError, match="no f8 multiplier named abacus"):
        cpu.native.peak("f8", "abacus", 1, 0.001)


def test_what_makes_figures_suspect(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    quiet = {"load": 3.0, "busy_cores": 0.02, "stolen_cores": 0.0}
    assert list(machine.complaints(quiet, 2)) == []
    (said,) = machine.complaints(quiet | {"stolen_cores": 1.4}, 2)
    assert "others use 1.4" in said
    (said,) = machine.complaints({"load": 3.0, "busy_cores": None, "stolen_cores": None}, 1)
    assert "load average 3.0" in said
    (said,) = machine.complaints(quiet, 4)
    assert "4 threads share 2 usable cores" in said


def test_activity_and_description_are_plain_values():
    found = machine.activity(seconds=0.02)
    assert found.keys() == {"load", "busy_cores", "stolen_cores"}
    facts = machine.describe()
    assert facts["usable_cores"] >= 1 and facts["memory_bytes"] > 1 << 28 and facts["processor"]
