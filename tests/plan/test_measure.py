"""Measuring this machine: plausible, by whatever probe, and a disk through files of any kind."""

from __future__ import annotations

import pytest

from fourfold.errors import RequestError
from fourfold.kernels import cpu
from fourfold.plan import disk_read_rate, measure, measure_here


class Slow:
    def read_bandwidth(self) -> float:
        return 5e9

    def matmul_peak(self) -> float:
        return 1e11


def test_the_probe_is_believed_and_memory_is_this_machines():
    here = measure_here(Slow())
    assert (here.bandwidth, here.bf16_peak, here.measured) == (5e9, 1e11, True)
    assert here.available is not None and 0 < here.available <= here.memory * 1.001
    assert here.cores == cpu.describe()["threads"] and (here.nodes or 1) >= 1
    assert here.title.startswith("this machine, ")


def test_torch_reads_and_multiplies(monkeypatch):
    monkeypatch.setattr(measure, "probe_size", lambda: 1 << 20)
    monkeypatch.setattr(measure, "_SECONDS", 0.01)
    monkeypatch.setattr(measure, "_MATMUL_SIZES", (64,))
    for probe in (measure.TorchProbe(), *([measure.NativeProbe()] if cpu.available() else [])):
        assert 1e7 < probe.read_bandwidth() < 1e13
        assert 1e6 < probe.matmul_peak() < 1e16


def test_what_is_read_exceeds_the_caches_and_leaves_memory_to_others(monkeypatch):
    monkeypatch.setattr(measure, "_last_cache", lambda: 1 << 30)
    monkeypatch.setattr(measure, "memory", lambda: (1 << 40, 1 << 40))
    assert measure.probe_size() == 2 << 30
    monkeypatch.setattr(measure, "memory", lambda: (1 << 40, 1 << 33))
    assert measure.probe_size() == 1 << 30
    monkeypatch.setattr(measure, "memory", lambda: (1 << 40, 0))
    assert measure.probe_size() == 256 << 20


def test_disk_of_a_file_and_of_a_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "_DISK_BYTES", 1 << 16)
    monkeypatch.setattr(measure, "_DISK_SECONDS", 0.05)
    file = tmp_path / "weights"
    file.write_bytes(bytes(1 << 16))
    assert disk_read_rate(file, 5000) > 0
    assert disk_read_rate(tmp_path, 8192) > 0
    assert list(tmp_path.iterdir()) == [file]


def test_a_disk_that_cannot_be_measured(tmp_path):
    (tmp_path / "small").write_bytes(b"x")
    with pytest.raises(RequestError, match=r"has 1 bytes; allowed: 8,192 \(two experts\) or a folder"):
        disk_read_rate(tmp_path / "small", 5000)
    with pytest.raises(RequestError, match="cannot be measured"):
        disk_read_rate(tmp_path / "none", 5000)
