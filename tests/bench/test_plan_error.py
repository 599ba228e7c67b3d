"""The comparison of plan and bench, on a bench file that agrees with it by construction."""

from __future__ import annotations

import json

import pytest

from bench import plan_error
from fourfold.plan import efficiencies


@pytest.fixture
def bench(tiny_folder):
    row = {"engine": "fourfold", "threads": 2, "context": 64}
    peer = {"engine": "other", "threads": 2, "context": 64, "prefill": {"best": 1.0}, "decode": None}
    peaks = {"bf16 torch": 1e11, "bf16 avx512": 3e11}
    return {
        "model": {"path": str(tiny_folder)},
        "settings": {"prefill": 128},
        "results": [{**row, "prefill": {"best": 100.0}, "decode": {"best": 10.0}}, peer],
        "limits": [
            {
                "threads": 2,
                "context": 64,
                "read_bytes_per_second": {"best": 2e10},
                "operations_per_second": peaks,
            }
        ],
    }


def test_the_error_is_of_the_prediction(bench, tmp_path, capsys):
    file, out = tmp_path / "bench.json", tmp_path / "error.json"
    file.write_text(json.dumps(bench))
    assert plan_error.main([str(file), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    document = json.loads(lines[-1])
    assert json.loads(out.read_text()) == document
    assert [row["kind"] for row in document["rows"]] == ["decode", "prefill"]
    assert document["efficiency"]["layer_seconds"] == efficiencies()["layer_seconds"].value
    for row in document["rows"]:
        assert row["error"] == pytest.approx(row["predicted"] / row["tokens_per_second"] - 1)
        assert row["predicted"] > 0
    assert len(lines) == 3
    # What was predicted, measured: no error.
    found = document["rows"]
    bench["results"][0] |= {row["kind"]: row["predicted"] for row in found}
    file.write_text(json.dumps(bench))
    plan_error.main([str(file)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["worst"] == pytest.approx(0, abs=1e-9)


def test_fitted_numbers_predict_what_was_measured_with_others(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan_error, "_STEPS", 60)
    file, model = tmp_path / "bench.json", bench["model"]["path"]
    file.write_text(json.dumps(bench))
    errors = []
    for more in ([], ["--fit"]):
        assert plan_error.main([str(file), str(file), "--model", model, model, *more]) == 0
        errors.append(json.loads(capsys.readouterr().out.splitlines()[-1])["worst"])
    assert errors[1] < 0.5 * errors[0]
    with pytest.raises(SystemExit):
        plan_error.main([str(file), str(file), "--model", model])
    assert "2 files and 1 models" in capsys.readouterr().err


def test_a_bench_without_limits_or_results_is_refused(bench, tmp_path, capsys):
    file = tmp_path / "bench.json"
    for key in ("limits", "results", "model"):
        file.write_text(json.dumps({**bench, key: []}))
        with pytest.raises(SystemExit) as stopped:
            plan_error.main([str(file)])
        assert stopped.value.code == 2
        assert "bench.json" in capsys.readouterr().err
