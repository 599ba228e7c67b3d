"""Which peers the options name, and what a llama-bench answers."""

from __future__ import annotations

import pytest

from fourfold.bench.engines import Cell, LlamaBench, Sample
from fourfold.bench.peers import LlamaPeer, llama_peers, open_peers
from fourfold.errors import RequestError


def test_labels_pair_programs_files_and_arguments():
    found = llama_peers(["a/bench", "ik=b/bench"], ["x.gguf"], ["ik=-rtr 1"])
    assert found == [
        LlamaPeer("llama.cpp", "a/bench", "x.gguf", ""),
        LlamaPeer("ik", "b/bench", "x.gguf", "-rtr 1"),
    ]
    # Paths and arguments with an = of their own are no labels.
    (peer,) = llama_peers(["dir/a=b"], [], ["-ot exps=CPU"])
    assert peer == LlamaPeer("llama.cpp", "dir/a=b", None, "-ot exps=CPU")


@pytest.mark.parametrize(
    ("programs", "files", "words", "complaint"),
    [
        (["a", "b"], [], [], "twice"),
        (["a"], ["ik=x"], [], "'ik'"),
        (["fourfold=a"], [], [], "another engine"),
        (["ik=a"], ["x"], ["-rtr 1"], "'llama.cpp'"),
    ],
)
def test_labels_that_fit_nothing_are_refused(programs, files, words, complaint):
    with pytest.raises(RequestError, match=complaint):
        llama_peers(programs, files, words)


def test_missing_peers_are_named(tmp_path, monkeypatch, llama_bench):
    monkeypatch.setenv("PATH", str(tmp_path))
    found, missing = open_peers(["llama.cpp"], llama_peers([], [], []), tmp_path, lambda _: None)
    assert found == [] and "no llama-bench on the PATH" in missing["llama.cpp"]
    program = str(llama_bench())
    _, missing = open_peers(["llama.cpp"], llama_peers([program], [], []), tmp_path, lambda _: None)
    assert "--gguf" in missing["llama.cpp"]
    nowhere = llama_peers([program], ["no.gguf"], [])
    _, missing = open_peers(["llama.cpp"], nowhere, tmp_path, lambda _: None)
    assert "there is no file no.gguf" in missing["llama.cpp"]


def test_llama_bench_with_depth(llama_bench, tmp_path):
    (tmp_path / "m.gguf").touch()
    engine = LlamaBench("llama.cpp", llama_bench(rate=100.0), tmp_path / "m.gguf", [])
    assert engine.measure(Cell(2, 512, 64, 8)) == Sample(100.0, 10.0)
    assert engine.report() == {
        "gguf": "m.gguf",
        "arguments": "",
        "version": "abc",
        "weights": "deepseek4 plain",
    }


def test_llama_bench_without_depth_decodes_after_a_prompt(llama_bench, tmp_path):
    (tmp_path / "m.gguf").touch()
    program = llama_bench(rate=100.0, option="-gp <pp,tg> -x")
    engine = LlamaBench("ik", program, tmp_path / "m.gguf", ["-rtr", "1"])
    assert engine.measure(Cell(1, 0, 64, 8)) == Sample(100.0, 10.0)
    assert engine.measure(Cell(1, 512, 64, 8)) == Sample(None, 5.0)
    assert engine.report()["weights"] == "deepseek4 1"


def test_programs_that_are_no_llama_bench_are_refused(llama_bench, tmp_path):
    (tmp_path / "m.gguf").touch()
    with pytest.raises(RequestError, match="is no llama-bench"):
        LlamaBench("x", llama_bench(option="--verbose"), tmp_path / "m.gguf", [])
    engine = LlamaBench("x", llama_bench("broken"), tmp_path / "m.gguf", [])
    (tmp_path / "broken").write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(RequestError, match="no JSON that we know: 'hello"):
        engine.measure(Cell(1, 0, 1, 1))
    (tmp_path / "broken").write_text("#!/bin/sh\necho out of memory >&2; exit 3\n")
    with pytest.raises(RequestError, match="exit code 3: out of memory"):
        engine.measure(Cell(1, 0, 1, 1))
