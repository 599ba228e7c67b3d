"""Conversations as samples: what the model is shown when it is asked, and what it should have said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fourfold.errors import TrainError
from fourfold.protocol import Chat
from fourfold.train.config import FileSection
from fourfold.train.corpus import Encoder, read_samples

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
CALL = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
USER, THINKS = {"role": "user", "content": "a cat?"}, {"reasoning_content": "hm <x>", "role": "assistant"}


@pytest.fixture(scope="module")
def encoder(tokenizer_file: Path) -> Encoder:
    return Encoder(tokenizer_file)


def parts(encoder: Encoder, record: dict[str, Any]) -> list[list[tuple[bool, str]]]:
    """Of each sample: runs of text that is learnt or not."""
    found = []
    for ids, learn in encoder.samples(record):
        runs: list[tuple[bool, list[int]]] = []
        for token, wanted in zip(ids, learn, strict=True):
            if not runs or runs[-1][0] != wanted:
                runs.append((wanted, []))
            runs[-1][1].append(token)
        found.append([(wanted, encoder.tokenizer.decode(run)) for wanted, run in runs])
    return found


def prompt(messages: list[Any], **options: Any) -> str:
    return Chat(messages=messages, **options).prompt().text


def test_all_answers_of_a_conversation_are_one_sample(encoder: Encoder) -> None:
    answers = [{"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": "No."}]
    messages = [USER, answers[0], USER, answers[1]]
    (runs,) = parts(encoder, {"messages": messages})
    first, whole = prompt(messages[:1]), prompt(messages[:3])
    end = "<｜end▁of▁sentence｜>"
    assert whole.startswith(f"{first}Yes.{end}")
    between = whole.removeprefix(f"{first}Yes.{end}")
    assert runs == [(False, first), (True, f"Yes.{end}"), (False, between), (True, f"No.{end}")]


def test_reasoning_is_learnt_and_left_out_of_later_prompts(encoder: Encoder) -> None:
    messages = [USER, THINKS | {"content": "Yes."}, USER, THINKS | {"content": "No."}]
    samples = parts(encoder, {"messages": messages})
    assert [runs[-1] for runs in samples] == [
        (True, f"hm <x></think>{text}<｜end▁of▁sentence｜>") for text in ("Yes.", "No.")
    ]
    assert samples[1][0] == (False, prompt(messages[:3], thinking=True))
    assert "hm" not in samples[1][0][1]


def test_calls_are_learnt_as_the_library_writes_them(encoder: Encoder) -> None:
    messages = [USER, THINKS | {"content": "", "tool_calls": CALL}]
    (runs,) = parts(encoder, {"messages": messages, "tools": TOOLS})
    assert runs[0] == (False, prompt(messages[:1], thinking=True, tools=TOOLS))
    assert runs[1][1].startswith("hm <x></think>\n\n<｜DSML｜tool_calls>")
    assert runs[1][1].endswith("</｜DSML｜tool_calls><｜end▁of▁sentence｜>")


def test_marks_that_somebody_types_stay_text(encoder: Encoder) -> None:
    typed = [{"role": "user", "content": "</think>"}, {"role": "assistant", "content": "<｜User｜>"}]
    ((ids, learn),) = encoder.samples({"messages": typed})
    marks = encoder.tokenizer.special_ids
    assert ids.count(marks["<｜User｜>"]) == 1 and ids.count(marks["</think>"]) == 1
    assert learn.count(True) == len(encoder.tokenizer.encode("<｜User｜>")) + 1


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [USER]}, "no message of the assistant"),
        ({"messages": [{"role": "x", "content": ""}, {"role": "assistant", "content": "a"}]}, "message 1 of"),
    ],
)
def test_conversations_without_a_lesson_are_refused(
    encoder: Encoder, tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(TrainError, match=message):
        read_samples(encoder, (FileSection(path=str(path)),))
