"""What is kept of the answers, the card, the judge, and a student that learns from them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from fourfold.distil.collect import collect, read_answers
from fourfold.distil.config import FiltersSection
from fourfold.distil.dataset import write_dataset
from fourfold.distil.filters import Filter, Similar, latin_share, repeated_share
from fourfold.distil.judge import judge, mark
from fourfold.distil.prompts import questions
from fourfold.train.config import FileSection
from fourfold.train.corpus import Encoder, read_samples
from tests.distil.conftest import MakeDistil, Teacher, echo, openai_answer

GOOD = "A cat sat on the mat and looked at a bird that sang in a tree."


def collected(config: Any, teacher: Teacher) -> list[dict[str, Any]]:
    collect(config, questions(config), teacher.client(config), lambda tally: None)
    return read_answers(Path(config.dir))


@pytest.mark.parametrize(
    ("answer", "finish", "reason"),
    [
        (GOOD, "stop", None),
        (GOOD, "length", "cut off"),
        (GOOD, "content_filter", "ended by content_filter"),
        ("", "stop", "length"),
        ("x" * 201, "stop", "length"),
        ("I'm sorry, I can't do that.", "stop", "refusal"),
        ("Это кошка, и она сидит.", "stop", "script"),
        ("the cat sat down " * 6, "stop", "repetition"),
    ],
)
def test_reasons(answer: str, finish: str, reason: str | None) -> None:
    keeping = Filter(FiltersSection(max_chars=200, script="latin"))
    assert keeping.reason(answer, finish) == reason


def test_near_duplicates_are_those_with_so_many_groups_in_common() -> None:
    """MinHash finds candidates only; the decision is that of the definition, but for rare misses."""
    generator, words = random.Random(1), [f"w{i}" for i in range(300)]

    def groups(text: str) -> set[tuple[str, ...]]:
        parts = text.split()
        return set(zip(parts, parts[1:], parts[2:], strict=False))

    wrong = total = 0
    for _ in range(150):
        base = [generator.choice(words) for _ in range(60)]
        other = list(base)
        for _ in range(generator.randrange(0, 8)):
            other[generator.randrange(60)] = generator.choice(words)
        a, b = groups(" ".join(base)), groups(" ".join(other))
        near = len(a & b) >= 0.8 * len(a | b)
        similar = Similar(0.8)
        assert not similar.seen(" ".join(base))
        wrong += similar.seen(" ".join(other)) != near
        total += near
    assert 20 < total < 150 and wrong <= 1


def test_shares() -> None:
    assert latin_share("été 123") == 1.0 and latin_share("ab где") == 0.4
    assert repeated_share("a b c d") == 0.0 and repeated_share("a b c d a b c d") == pytest.approx(0.2)


def test_data_set_and_card(make_distil: MakeDistil, tmp_path: Path, tokenizer_file: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> httpx.Response:
        text = body["messages"][-1]["content"]
        return openai_answer(GOOD if text != "three" else "As an AI, no.", reasoning="hm", tokens=9)

    config = make_distil("one\ntwo\nthree\n", sampling={"thinking": "keep"})
    data = write_dataset(config, collected(config, Teacher(answer)))
    assert (data.kept, data.dropped, data.tokens) == (1, {"near duplicate": 1, "refusal": 1}, 9)
    (record,) = [json.loads(line) for line in data.path.read_text().splitlines()]
    assert record["messages"][-1] == {"role": "assistant", "content": GOOD, "reasoning_content": "hm"}
    assert record["teacher"]["model"] == "t" and record["terms"] == "ours"
    card = (data.path.parent / "README.md").read_text()
    assert "distilled from t" in card and "| refusal | 1 |" in card and "| ours |" in card
    assert len(read_samples(Encoder(tokenizer_file), (FileSection(path=str(data.path)),))) == 1
    stripped = make_distil("one\ntwo\nthree\n", sampling={"thinking": "strip"})
    write_dataset(stripped, read_answers(Path(config.dir)))
    assert "hm" not in data.path.read_text()


def test_the_order_of_answers_changes_nothing(make_distil: MakeDistil) -> None:
    config = make_distil()
    answers = collected(config, Teacher(echo))
    first = write_dataset(config, answers).path.read_bytes()
    assert write_dataset(config, answers[::-1]).path.read_bytes() == first


def test_the_judge_decides_and_is_asked_once(make_distil: MakeDistil) -> None:
    config = make_distil(filters={"judge": "Mark {answer} to {prompt}, 1 to 10.", "judge_least": 5})
    answers = collected(config, Teacher(echo))

    def strict(body: dict[str, Any], number: int) -> httpx.Response:
        return openai_answer("2" if "said two" in body["messages"][-1]["content"] else "Mark: 8/10")

    teacher = Teacher(strict)
    marks = judge(config, answers, teacher.client(config), lambda tally: None)
    assert teacher.bodies[0]["temperature"] == 0.0
    assert {b["messages"][0]["content"] for b in teacher.bodies} == {
        f"Mark You said {t}. to {t}, 1 to 10." for t in ("one", "two", "three")
    }
    data = write_dataset(config, answers, marks)
    assert (data.kept, data.dropped) == (2, {"judge": 1})
    again = Teacher(strict)
    assert judge(config, answers, again.client(config), lambda tally: None) == marks
    assert again.bodies == []


@pytest.mark.parametrize(("said", "number"), [("10", 10), ("I give 7.", 7), ("none", None), ("11", None)])
def test_marks(said: str, number: int | None) -> None:
    assert mark(said) == number
