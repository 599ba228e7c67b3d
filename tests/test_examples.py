"""Every example runs, on a tiny checkpoint, and stays short."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_there_are_five():
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example, tiny_folder, tmp_path, monkeypatch, capsys):
    folder = tmp_path if example.stem == "make_and_convert" else tiny_folder
    monkeypatch.setattr(sys, "argv", [str(example), str(folder)])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short(example):
    assert len(example.read_text(encoding="utf-8").splitlines()) < 40


def test_drafting_changes_no_token(tiny_folder, monkeypatch, capsys):
    """What the example says is the model's own greedy text."""
    import fourfold

    example = next(path for path in EXAMPLES if path.stem == "draft_and_verify")
    monkeypatch.setattr(sys, "argv", [str(example), str(tiny_folder)])
    names = runpy.run_path(str(example), run_name="__main__")
    capsys.readouterr()
    m = fourfold.load(tiny_folder)
    assert m.tokenizer is not None
    prompt = [m.config.bos_token_id, *m.tokenizer.encode(names["prompt"])]
    said = names["ids"][len(prompt) :]
    cache, fresh = m.new_cache(), prompt
    for token in said:
        assert int(m(torch.tensor([fresh]), cache=cache).logits[0, -1].argmax()) == token
        fresh = [token]
