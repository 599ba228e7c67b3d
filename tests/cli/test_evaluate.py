"""`fourfold eval` from the command line."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"good": "a cat", "bad": "cat a"}\n' * 3, encoding="utf-8")
    return path


def test_a_table_with_intervals(run, tiny_folder, pairs):
    ran = run("eval", tiny_folder, pairs, "--limit", 2)
    assert ran.code == 0
    row = next(line for line in ran.out.splitlines() if "good one likelier" in line)
    assert " 2 " in row and "% to " in row


def test_beside_another_model(run, tiny_folder, pairs):
    ran = run("eval", tiny_folder, pairs, "--against", tiny_folder, "--json")
    (figure,) = json.loads(ran.out)["tasks"]["pairs"]
    assert figure["value"] == figure["against"]
    assert figure["difference"] == 0.0 and figure["difference_interval"] == [0.0, 0.0]
    table = run("eval", tiny_folder, pairs, "--against", tiny_folder)
    assert "not sure" in table.out


def test_a_bad_task_is_named_before_a_model_is_loaded(run, tmp_path):
    ran = run("eval", tmp_path / "no-model", tmp_path / "nothing.jsonl")
    assert ran.code == 1
    assert "cannot read the task" in ran.err
