"""The worker drives an engine: contexts kept, threads changed, failures answered in one line."""

from __future__ import annotations

import json

import pytest

from fourfold.bench.accuracy import accuracy
from fourfold.bench.engines import Cell, WorkerEngine
from fourfold.bench.own import Own
from fourfold.bench.worker import Worker, peak_memory
from fourfold.errors import RequestError


def test_worker_measures_each_context_from_the_same_state(tiny_folder):
    own = Own(tiny_folder, numerics="fast")
    worker = Worker(own)
    request = {"threads": 1, "context": 40, "prefill": 20, "decode": 3}
    first, second = worker.answer(request), worker.answer(request)
    assert first["fill_seconds"] > 0 and second["fill_seconds"] is None
    assert all(answer[key] > 0 for answer in (first, second) for key in ("prefill_seconds", "decode_seconds"))
    # What was measured is taken back before the next measurement.
    state = worker._states[40]
    assert own.branch(state).cache.length == 40
    assert worker.answer({**request, "threads": 2})["fill_seconds"] > 0
    report = worker.answer({"report": True})
    assert report["peak_bytes"] > 1 << 20 and report["about"] == {}
    own.use_threads(1)


def test_statistics_of_streamed_experts_are_passed_on(tiny_folder, monkeypatch):
    """Where the model does not fit in free RAM; they must be JSON."""
    monkeypatch.setattr("fourfold.tiers.budget.free_ram", lambda: 1800 << 10)
    worker = Worker(Own(tiny_folder, numerics="exact"))
    worker.answer({"threads": 1, "context": 0, "prefill": 8, "decode": 1})
    about = json.loads(json.dumps(worker.answer({"report": True})))["about"]
    assert about["tiers"]["misses"] > 0 and about["tiers"]["bytes_read"] > 0


def test_a_worker_that_cannot_load_says_why(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RequestError, match=r"fourfold: .*config\.json"):
        WorkerEngine("fourfold", tmp_path, numerics="exact")


def test_a_worker_that_vanishes_is_an_error(tiny_folder):
    engine = WorkerEngine("fourfold", tiny_folder, numerics="exact")
    engine._process.kill()
    with pytest.raises(RequestError, match="ended with exit code -9"):
        engine.measure(Cell(1, 0, 4, 1))
    engine.close()


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory()
    block = bytearray(b"1") * (before + (1 << 20))
    assert peak_memory() >= len(block)


def test_accuracy_of_exact_numerics_against_themselves(tiny_folder):
    found = accuracy(tiny_folder, "exact")
    assert found["tokens"] == 512 and found["text"] == "language"
    assert found["kl_nats"] == pytest.approx(0.0, abs=1e-12) and found["same_first_choice"] == 1.0
