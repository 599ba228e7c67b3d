"""inspect, export, synth, kernels, verify and train from the command line."""

from __future__ import annotations

import json

import pytest

from fourfold import conformance, kernels
from fourfold.cli import verify as verify_module
from fourfold.conformance.report import Check, Report
from fourfold.train.trainer import TrainResult


def test_inspect_in_words_and_as_a_document(run, tiny_folder):
    ran = run("inspect", tiny_folder)
    assert ran.code == 0
    for text in ("4 (2 swa, 1 csa, 1 hca)", "active", "fp4", "1M tokens"):
        assert text in ran.out
    document = json.loads(run("inspect", tiny_folder, "--json").out)
    assert document["layers"] == {"swa": 2, "csa": 1, "hca": 1}
    assert sum(document["bytes_by_format"].values()) == document["bytes_total"]


def test_export_keeps_and_converts(run, tiny_folder, tmp_path):
    ran = run("export", tiny_folder, tmp_path / "same")
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'same'}\n")
    same, original = (tmp_path / "same" / "model.safetensors", tiny_folder / "model.safetensors")
    assert same.read_bytes() == original.read_bytes()
    assert run("export", tiny_folder, tmp_path / "wide", "--experts", "bf16").code == 0
    assert json.loads(run("inspect", tmp_path / "wide", "--json").out)["expert_format"] == "bf16"
    again = run("export", tiny_folder, tmp_path / "same")
    assert again.code == 1
    document = json.loads(run("export", tiny_folder, tmp_path / "same", "--overwrite", "--json").out)
    assert document["folder"] == str(tmp_path / "same")
    assert (document["bytes"], document["files"]) == (original.stat().st_size, 1)
    assert document["seconds"] > 0


def test_export_by_a_recipe_says_what_it_costs(run, tiny_folder, tmp_path):
    ran = run("export", tiny_folder, tmp_path / "w4a8", "--format", "w4a8")
    assert ran.code == 0
    assert ran.out.endswith(f"\n{tmp_path / 'w4a8'}\n")
    lines = {line.split()[0]: line.split() for line in ran.out.splitlines() if "%" in line}
    assert lines["ffn.experts.w2"][1:3] == ["40", "int4"]  # eight experts in four layers and the MTP block
    assert lines["attn.indexer.wq_b"][2] == "int8"
    assert lines["attn.wo_a"][2:] == ["bf16", "-", "0.00%", "0.00%", "-"]
    document = json.loads(run("inspect", tmp_path / "w4a8", "--json").out)
    assert document["expert_format"] == "int4"
    text = tmp_path / "words.txt"
    text.write_text("once upon a time there was a cat. " * 20)
    ran = run("export", tiny_folder, tmp_path / "w8a8", "--format", "w8a8", "--calibrate", text, "--json")
    document = json.loads(ran.out)
    assert (document["format"], document["folder"]) == ("w8a8", str(tmp_path / "w8a8"))
    errors = {error["name"]: error for error in document["errors"]}
    met = errors["layers.0.ffn.shared_experts.w1.weight"]
    assert met["weighted"] <= met["weighted_unclipped"]
    assert "calibrated on " in ran.err
    answer = run("generate", "-m", tmp_path / "w8a8", "once", "-n", 3, "--raw")
    assert answer.code == 0


def test_export_refuses_formats_that_contradict_each_other(run, tiny_folder, tmp_path):
    out, text = tmp_path / "out", tmp_path / "missing.txt"
    for words, message in (
        (("--format", "w8a8", "--experts", "fp8"), "--format decides for all tensors"),
        (("--calibrate", text), "--calibrate needs --format"),
        (("--format", "w2a2"), "w2a2"),
    ):
        ran = run("export", tiny_folder, out, *words)
        assert (ran.code, ran.out) == (2, "")
        assert message in ran.err
    ran = run("export", tiny_folder, out, "--format", "w8a8", "--calibrate", text)
    assert ran.code == 1
    assert "missing.txt: cannot be read (No such file or directory); give a text file" in ran.err
    text.write_bytes(b"\xff\xfe")
    ran = run("export", tiny_folder, out, "--format", "w8a8", "--calibrate", text)
    assert ran.code == 1
    assert "is not UTF-8 text" in ran.err


def test_synth_writes_what_was_asked(run, tmp_path):
    words = (
        "--layers",
        2,
        "--experts",
        4,
        "--hidden",
        128,
        "--set",
        "vocab_size=64",
        "--set",
        "q_lora_rank=32",
    )
    ran = run("synth", tmp_path / "a", *words, "--set", "num_attention_heads=8", "--set", "o_lora_rank=32")
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'a'}\n")
    document = json.loads(run("inspect", tmp_path / "a", "--json").out)
    assert (document["vocab_size"], document["experts"]) == (64, 4)
    document = json.loads(
        run("synth", tmp_path / "c", *words, "--set", "num_attention_heads=8", "--seed", 3, "--json").out
    )
    weights = tmp_path / "c" / "model.safetensors"
    assert (document["bytes"], document["files"], document["seed"]) == (weights.stat().st_size, 1, 3)
    assert (document["layers"], document["experts"]) == (2, 4)
    ran = run("synth", tmp_path / "b", "--set", "no_such_key=1")
    assert ran.code == 1
    assert "no_such_key" in ran.err


def test_kernels_names_every_operation(run):
    ran = run("kernels")
    assert ran.code == 0
    assert [line.split()[0] for line in ran.out.splitlines()[1:]] == list(kernels.OPERATIONS)
    document = json.loads(run("kernels", "--json", "--device", "cpu").out)
    assert list(document["operations"]["cpu"]) == list(kernels.OPERATIONS)
    assert document["cpu"]["threads"] >= 1


def check(group: str, value: float, bound: float = 1e-4) -> Check:
    return Check(group=group, name="prefill", detail="300 tokens", value=value, bound=bound, max_abs=value)


def test_verify_passes_on_this_machine(run, tiny_folder, monkeypatch):
    report = conformance.certify(tiny_folder, "cpu")
    monkeypatch.setattr(verify_module, "certify", lambda *_: report)
    ran = run("verify", tiny_folder)
    assert ran.code == 0, ran.err
    for text in (
        "linear",
        "streams: csa",
        "distribution: mean KL",
        "reference: 128 tokens, typical",
        "torch",
    ):
        assert text in ran.out
    assert "FAILED" not in ran.out
    document = json.loads(run("verify", tiny_folder, "--json").out)
    assert document["passed"]
    assert {entry["group"] for entry in document["checks"]} == {"kernel", "golden", "checkpoint"}


def test_verify_writes_a_report_that_can_be_sent(run, tiny_folder, tmp_path, monkeypatch):
    failed = conformance.broken("kernel", "rope", "2 heads", RuntimeError("EZ9999: inner error"))
    report = Report("cpu", {"device": "test"}, [check("golden", 0.0), failed])
    monkeypatch.setattr(verify_module, "certify", lambda *_: report)
    ran = run("verify", tiny_folder, "--report", tmp_path / "report.json")
    assert ran.code == 1 and "kernel rope, 2 heads: EZ9999: inner error" in ran.err
    document = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert document["checkpoint"] == tiny_folder.name and not document["passed"]
    assert [entry["error"] for entry in document["checks"]] == [None, "EZ9999: inner error"]
    assert run("verify", tiny_folder, "--report", tmp_path / "no" / "report.json").code == 2


def test_verify_says_what_it_did_not_exercise(run, tiny_folder, monkeypatch):
    report = Report("cpu", {"device": "test"}, [check("kernel", 0.0)])
    report.add(conformance.NotExercised("the indexer's choice", "needs 2,052 tokens"))
    monkeypatch.setattr(verify_module, "certify", lambda *_: report)
    ran = run("verify", tiny_folder)
    assert ran.code == 0
    assert "fourfold: not exercised: the indexer's choice (needs 2,052 tokens)\n" in ran.err
    assert json.loads(run("verify", tiny_folder, "--json").out)["not_exercised"]


@pytest.mark.parametrize("value", [2e-4, float("nan"), float("inf")])
def test_verify_out_of_bounds_is_1_and_named(run, tiny_folder, monkeypatch, value):
    checks = [check("kernel", 0.0), check("golden", value), check("checkpoint", 0.0)]
    monkeypatch.setattr(verify_module, "certify", lambda *_: Report("cpu", {"device": "test"}, checks))
    ran = run("verify", tiny_folder)
    assert ran.code == 1
    assert "FAILED" in ran.out
    assert "golden prefill, 300 tokens" in ran.err
    assert "2 of 3 checks passed" in ran.err
    assert json.loads(run("verify", tiny_folder, "--json").out)["passed"] is False


def test_train_names_what_is_wrong_with_its_config(run, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("[model]\nconfig = 'c'\n[data]\n[run]\nwieght = 1\n")
    ran = run("train", config)
    assert ran.code == 1
    assert ran.err.startswith("fourfold: error: ")
    config.write_text("wieght = 1\n")
    assert "wieght" in run("train", config).err


def test_train_as_a_document(run, tmp_path, monkeypatch):
    config = tmp_path / "run.toml"
    monkeypatch.setattr("fourfold.train.config.load_config", lambda path, changes: changes)

    def trained(changes):
        assert changes == ["optim.lr=1", "run.threads=1"]
        return TrainResult(
            folder=tmp_path,
            steps=10,
            tokens=2000,
            seconds=1.5,
            loss=float("nan"),
            held_out_loss=None,
            export=tmp_path / "export",
        )

    monkeypatch.setattr("fourfold.train.trainer.train", trained)
    words = ("train", config, "--set", "optim.lr=1", "--threads", 1)
    assert json.loads(run(*words, "--json").out) == {
        "folder": str(tmp_path),
        "export": str(tmp_path / "export"),
        "steps": 10,
        "tokens": 2000,
        "seconds": 1.5,
        "loss": None,
        "held_out_loss": None,
    }
    assert run(*words).out == f"{tmp_path / 'export'}\n"


def test_plan_in_words_and_as_a_document(run):
    words = ("plan", "flash", "--hardware", "epyc-9004", "--concurrency", "8", "--electricity", "0.3")
    ran = run(*words)
    assert ran.code == 0
    for text in (
        "11.22 GB",
        "routed experts",
        "decode, 8 together",
        "0.108 USD an hour",
        "Assumptions",
        "0.85",
    ):
        assert text in ran.out
    document = json.loads(run(*words, "--json").out)
    assert document["placement"]["fits"] is True
    assert document["decode"].keys() == {"1", "8"}


def test_plan_of_what_does_not_fit_is_1_and_says_what_to_do(run):
    ran = run("plan", "pro", "--hardware", "desktop-ddr5", "--ram", "64GiB")
    assert ran.code == 1
    assert "no, needs" in ran.out
    assert "fourfold: pro does not fit: needs" in ran.err and "--disk PATH or RATE" in ran.err
    streamed = run("plan", "pro", "--hardware", "desktop-ddr5", "--ram", "64GiB", "--disk", "7GB/s")
    assert streamed.code == 0
    assert "skewed routing" in streamed.out


def test_plan_measures_this_machine(run, monkeypatch, tiny_folder):
    for name, value in {"probe_size": lambda: 1 << 20, "_SECONDS": 0.01, "_MATMUL_SIZES": (64,)}.items():
        monkeypatch.setattr(f"fourfold.plan.measure.{name}", value)
    ran = run("plan", tiny_folder, "--context", "64", "--prompt", "64", "--ram", "1GB", "--disk", "1GB/s")
    assert (ran.code, ran.err) == (0, "fourfold: measuring this machine\n")
    assert "on this machine" in ran.out


def test_plan_refuses_before_it_measures(run, tiny_folder):
    ran = run("plan", tiny_folder, "--context", "513")
    assert (ran.code, ran.err) == (1, "fourfold: error: context is 513; allowed: 1 to 512\n")
