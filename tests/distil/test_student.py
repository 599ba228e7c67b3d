"""From answers to a student that is measurably better, by the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import fourfold
from fourfold.cli import main as command
from fourfold.errors import TrainError
from fourfold.train.masters import read_masters
from fourfold.train.trainer import Trainer
from tests.distil.conftest import openai_answer
from tests.train.conftest import MODEL, corpus_file, make_config  # noqa: F401

ANIMALS = ["cat", "dog", "cow", "hen", "fox", "owl", "bee", "ant", "eel", "bat"]


@pytest.fixture
def folder(tmp_path: Path, tokenizer_file: Path) -> Path:
    """prompts.txt, train.toml, task.jsonl and distil.toml."""
    (tmp_path / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("".join(f"What does a {a} eat?\n" for a in ANIMALS))
    tasks = [{"prompt": f"What does a {a} eat?", "response": f"A {a} eats grass."} for a in ANIMALS]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    (tmp_path / "train.toml").write_text(
        f"""
[model]
config = "{tmp_path}/config.json"
init_std = 0.1
[data]
tokenizer = "{tokenizer_file}"
files = []
held_out_share = 0.0
sequence_length = 64
batch_size = 4
loss_on = "answers"
[run]
dir = "{tmp_path}/student"
steps = 12
dtype = "float32"
threads = 1
"""
    )
    (tmp_path / "distil.toml").write_text(
        f"""
dir = "{tmp_path}/out"
[teacher]
url = "http://teacher/v1"
model = "t"
terms = "ours"
accepted = true
[prompts]
files = ["{tmp_path}/prompts.txt"]
[student]
train = "{tmp_path}/train.toml"
tasks = ["{tmp_path}/task.jsonl"]
"""
    )
    return tmp_path


def teacher(request: httpx.Request) -> httpx.Response:
    question = json.loads(request.content)["messages"][-1]["content"]
    animal = question.split()[3]
    return openai_answer(f"A {animal} eats grass.")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that reach the teacher."""
    seen: list[Any] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return teacher(request)

    plain = httpx.AsyncClient
    transport = httpx.MockTransport(handle)
    monkeypatch.setattr(httpx, "AsyncClient", lambda **options: plain(**options | {"transport": transport}))
    return seen


def test_the_command_makes_a_student_that_is_better(
    folder: Path, asked: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["distil", str(folder / "distil.toml"), "--dry-run"]) == 0
    assert "10 questions to t" in capfd.readouterr().out and asked == []
    # Answers that differ in one word are near duplicates; here they are meant.
    words = ["distil", str(folder / "distil.toml"), "--set", "filters.near_duplicate=1"]
    assert command.main(words) == 0
    shown = capfd.readouterr()
    assert "10 of 10 questions answered" in shown.err and "10 answers kept" in shown.err
    row = next(line for line in shown.out.splitlines() if line.startswith("nats per token"))
    assert row.endswith("better")
    student = fourfold.load(folder / "student" / "export")
    assert "".join(fourfold.generate(student, "A", max_tokens=3, temperature=0.0))
    assert command.main(words) == 0 and len(asked) == 10


def test_what_is_wrong_with_the_student_shows_before_anything_is_asked(
    folder: Path, asked: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "train.toml").write_text("[model]\nconfi = 1\n")
    assert command.main(["distil", str(folder / "distil.toml")]) == 1
    assert "confi" in capfd.readouterr().err and asked == []


def test_training_starts_from_an_exported_checkpoint(make_config: Any, tmp_path: Path) -> None:  # noqa: F811
    trainer = Trainer(make_config(quantisation={"start": 0.0}))
    trainer.step()
    export = trainer.objective.export(tmp_path / "export", Path(trainer.config.data.tokenizer))
    trainer.close()
    assert export is not None
    from fourfold.train.quantise import rounded_weights

    with rounded_weights(trainer.parameters, trainer.objective.formats):
        expected = {name: value.clone() for name, value in trainer.objective.masters().items()}
    again = Trainer(make_config(model={"init_from": str(export)}, run={"dir": str(tmp_path / "again")}))
    again.close()
    for name, value in again.objective.masters().items():
        torch.testing.assert_close(value, expected[name], atol=0, rtol=0, msg=name)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"holds no state\.json of a run and no config\.json"):
        read_masters(tmp_path)
