"""`fourfold bench` from the command line: a whole run beside transformers and a pretended llama-bench."""

from __future__ import annotations

import json
import sys

import pytest

from fourfold.cli.main import main
from fourfold.kernels.cpu import nodes
from fourfold.kernels.cpu.nodes import Node

WORDS = ("--contexts", "0,20", "--prefill", "8,30", "--decode", 2, "--threads", 1, "--repetitions", 2)


def call(capfd, *words):
    code = main(["bench", *map(str, words)])
    return code, capfd.readouterr()


def test_a_whole_run(capfd, tiny_folder, tmp_path, quick_machine, llama_bench, monkeypatch):
    # The system refuses the second node, if it is asked: loading goes on.
    monkeypatch.setattr(nodes, "here", lambda: (Node(0, (0,)), Node(1023, ())))
    (tmp_path / "m.gguf").touch()
    peers = ("--compare", "transformers,llama.cpp", "--gguf", tmp_path / "m.gguf")
    llama = ("--llama-bench", llama_bench(), "--llama-bench", f"gone={tmp_path / 'gone'}")
    files = ("--out", tmp_path / "run.json", "--plot", tmp_path / "run.svg")
    more = ("--numerics", "deployed", "--accuracy")
    code, said = call(capfd, tiny_folder, *WORDS, *peers, *llama, *files, *more)
    assert code == 0, said.err
    assert "not compared: gone: there is no file" in said.err
    document = json.loads(said.out.splitlines()[-1])
    assert document == json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert "<svg" in (tmp_path / "run.svg").read_text(encoding="utf-8")
    tables = ("prefill tok/s", "ours ×", "cold start", "deployed numerics")
    for text in (*tables, "GB/s", "same first choice", "memory in 2 nodes"):
        assert text in said.out
    check_document(document)
    assert document["engines"].keys() == {"fourfold", "transformers", "llama.cpp"}
    assert document["engines"]["llama.cpp"]["version"] == "abc"
    assert document["not_compared"].keys() == {"gone"}
    assert 0 <= document["accuracy"]["kl_nats"] < 1


def test_less_ram_than_the_model(capfd, tiny_folder, quick_machine):
    words = ("--contexts", 0, "--prefill", 8, "--decode", 2, "--threads", 1, "--repetitions", 1)
    code, said = call(capfd, tiny_folder, *words, "--ram", "1575KiB", "--json")
    assert code == 0, said.err
    document = json.loads(said.out)
    assert document["settings"]["ram"] == "1575KiB"
    assert document["engines"]["fourfold"]["tiers"]["misses"] > 0


def check_document(document):
    assert document["format"] == 2
    assert document["settings"] == {
        "contexts": [0, 20],
        "threads": [1],
        "prefill": [8, 30],
        "decode": 2,
        "repetitions": 2,
        "ram": None,
        "device_memory": None,
        "probe_bytes": 4 << 20,
    }
    assert document["model"]["numerics"] == "deployed" and document["model"]["layers"] == 4
    assert {"processor", "usable_cores", "memory_bytes", "isa", "kernels", "torch"} <= document[
        "machine"
    ].keys()
    assert {"commit", "command", "date", "activity"} <= document.keys()
    own = document["engines"]["fourfold"]
    assert 0 < own["load_seconds"] < own["start_seconds"] and own["peak_bytes"] > 1 << 24
    rows = {(row["engine"], row["context"], row["prompt"]): row for row in document["results"]}
    assert len(rows) == len(document["results"]) == 9
    for (engine, context, prompt), row in rows.items():
        assert row["threads"] == 1 and row["prefill"]["best"] >= row["prefill"]["median"] > 0
        if prompt == 30:
            assert context == 0 and row["decode"] is None
            continue
        assert len(row["decode"]["samples"]) == 2
        if engine == "fourfold":
            assert row["bytes_per_token"] > document["model"]["weight_bytes_per_token"]
            assert row["bandwidth_share"] > 0 and row["compute_share"] > 0 and row["library_share"] > 0
            assert row["first_token_seconds"] > 0
        else:
            ours = rows["fourfold", context, prompt]["decode"]["best"]
            assert row["times"]["decode"] == pytest.approx(ours / row["decode"]["best"])
    assert [limit["context"] for limit in document["limits"]] == [0, 20, 0]


def test_json_alone(capfd, tiny_folder, quick_machine, monkeypatch):
    words = ("--contexts", 0, "--prefill", 4, "--decode", 1, "--threads", 1, "--repetitions", 1, "--json")
    monkeypatch.setattr(sys, "argv", ["fourfold", "bench", "some where"])
    code, said = call(capfd, tiny_folder, *words)
    assert code == 0, said.err
    document = json.loads(said.out)
    assert document["accuracy"] is None and document["command"] == "fourfold bench 'some where'"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--contexts", "0,x"), "'x' in --contexts"),
        (("--threads", "0"), "'0' in --threads"),
        (("--prefill", "512,0"), "'0' in --prefill"),
        (("--compare", "vllm"), "allowed: transformers, llama.cpp"),
        (("--plot", "run.pdf"), ".svg, .png"),
        (("--out", "nowhere/run.json"), "no folder nowhere"),
        (("--gguf", "m.gguf"), "need --compare llama.cpp"),
    ],
)
def test_wrong_usage(capfd, words, complaint):
    code, said = call(capfd, *words)
    assert code == 2 and complaint in said.err and said.out == ""


def test_contexts_beyond_the_model_are_refused(capfd, tiny_folder):
    code, said = call(capfd, tiny_folder, "--contexts", 510, "--prefill", 8, "--decode", 1)
    assert code == 1 and "518 tokens; this model has positions for 512" in said.err
