"""Asking: each question once, no dearer than allowed, again where that helps, and on after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from fourfold.distil.collect import ANSWERS, Tally, collect, read_answers
from fourfold.distil.prompts import questions
from fourfold.errors import ConfigError, TrainError
from tests.distil.conftest import MakeDistil, Teacher, echo, openai_answer


def run(config: Any, teacher: Teacher) -> Tally:
    return collect(config, questions(config), teacher.client(config), lambda tally: None)


def test_each_question_is_answered_once_with_its_provenance(make_distil: MakeDistil) -> None:
    config = make_distil(prompts={"answers": 2}, sampling={"temperatures": [0.5, 1.0], "seed": 7})
    teacher = Teacher(echo)
    tally = run(config, teacher)
    assert (tally.questions, tally.answered, tally.refused) == (6, 6, 0)
    records = read_answers(Path(config.dir))
    assert sorted((r["messages"][0]["content"], r["seed"], r["temperature"]) for r in records) == sorted(
        (text, 7 + i, t) for text in ("one", "two", "three") for i, t in enumerate((0.5, 1.0))
    )
    first = records[0]
    assert first["content"] == f"You said {first['messages'][0]['content']}."
    assert first["teacher"] == {"url": "http://teacher/v1", "model": "t"} and first["terms"] == "ours"
    again = Teacher(echo)
    assert run(config, again).answered == 6
    assert again.bodies == []


def test_personas_take_turns(make_distil: MakeDistil) -> None:
    config = make_distil(prompts={"answers": 3, "systems": ["a pirate", "a poet"], "limit": 1})
    systems = [q.messages[0]["content"] if len(q.messages) > 1 else None for q in questions(config)]
    assert systems == [None, "a pirate", "a poet"]


def test_goes_on_after_half_a_line(make_distil: MakeDistil) -> None:
    config = make_distil()
    run(config, Teacher(echo))
    path = Path(config.dir) / ANSWERS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:40])
    teacher = Teacher(echo)
    tally = run(config, teacher)
    assert len(teacher.bodies) == 1 and tally.answered == 3
    assert len(read_answers(Path(config.dir))) == 3


def test_the_budget_is_never_passed(make_distil: MakeDistil) -> None:
    """5 of 10 tokens are used, but each question is let go only if its 10 still fit."""
    prices = {"input_price": 0.0, "output_price": 1e6}
    config = make_distil(
        "\n".join(map(str, range(50))),
        teacher=prices,
        sampling={"max_tokens": 10},
        budget={"cost": 100.0, "concurrency": 4},
    )
    tally = run(config, Teacher(echo))
    assert tally.capped and tally.cost <= 100.0
    assert tally.answered >= 16
    more = make_distil(
        "\n".join(map(str, range(50))),
        teacher=prices,
        sampling={"max_tokens": 10},
        budget={"cost": 120.0, "concurrency": 4},
    )
    assert 100.0 < run(more, Teacher(echo)).cost + 5 <= 125.0


def test_busy_teachers_are_asked_again(make_distil: MakeDistil) -> None:
    def busy(body: dict[str, Any], number: int) -> httpx.Response:
        if number == 1:
            return httpx.Response(429, headers={"retry-after": "7"})
        if number == 2:
            raise httpx.ConnectError("gone")
        return echo(body, number)

    teacher = Teacher(busy)
    config = make_distil("one\n")
    assert run(config, teacher).answered == 1
    assert teacher.waits == [7.0, 2.0]


def test_a_teacher_that_is_gone_is_named_and_answers_are_kept(make_distil: MakeDistil) -> None:
    def answer(body: dict[str, Any], number: int) -> httpx.Response:
        return echo(body, number) if number == 1 else httpx.Response(503, text="overloaded")

    config = make_distil(budget={"attempts": 2, "concurrency": 1})
    with pytest.raises(TrainError, match=r"did not answer in 2 attempts .status 503: overloaded"):
        run(config, Teacher(answer))
    assert len(read_answers(Path(config.dir))) == 1


def test_refusals_of_one_question_are_counted(make_distil: MakeDistil) -> None:
    def answer(body: dict[str, Any], number: int) -> httpx.Response:
        wrong = body["messages"][-1]["content"] == "two"
        return httpx.Response(400, text="too rude") if wrong else echo(body, number)

    tally = run(make_distil(), Teacher(answer))
    assert (tally.answered, tally.refused) == (2, 1)


def test_refusals_of_all_questions_end_it(make_distil: MakeDistil) -> None:
    config = make_distil("\n".join(map(str, range(40))), budget={"concurrency": 1})
    teacher = Teacher(lambda body, number: httpx.Response(422, text="no such parameter: seed"))
    with pytest.raises(TrainError, match=r"refused 20 questions in a row.*no such parameter: seed"):
        run(config, teacher)
    assert len(teacher.bodies) == 20


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (httpx.Response(401, text="bad key"), "answers 401: bad key; check"),
        (httpx.Response(200, text="<html>"), "answers in another form than openai's"),
        (httpx.Response(200, json={"choices": []}), "answers in another form than openai's"),
    ],
)
def test_a_wrong_address_is_named(make_distil: MakeDistil, response: httpx.Response, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        run(make_distil(), Teacher(lambda body, number: response))


def test_terms_come_first(make_distil: MakeDistil) -> None:
    teacher = Teacher(echo)
    with pytest.raises(TrainError, match=r"terms of t \(ours\) are not accepted"):
        run(make_distil(teacher={"accepted": False}), teacher)
    assert teacher.bodies == []


def test_openai_and_anthropic_bodies_and_keys(
    make_distil: MakeDistil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "secret")
    sampling = {"thinking": "keep", "max_tokens": 64}
    shared = {"prompts": {"systems": ["be brief"], "plain": False, "limit": 1}, "sampling": sampling}
    openai = Teacher(lambda body, number: openai_answer("yes", reasoning="hm"))
    config = make_distil(teacher={"key_env": "TEACHER_KEY"}, **shared)
    run(config, openai)
    assert openai.urls == ["http://teacher/v1/chat/completions"]
    assert openai.headers[0]["authorization"] == "Bearer secret"
    assert openai.bodies[0]["messages"][0] == {"role": "system", "content": "be brief"}
    assert openai.bodies[0]["thinking"] == {"type": "enabled"}
    assert read_answers(Path(config.dir))[0]["reasoning"] == "hm"

    blocks = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yes"}]
    usage = {"input_tokens": 3, "output_tokens": 4}
    said = {"content": blocks, "stop_reason": "end_turn", "usage": usage}
    anthropic = Teacher(lambda body, number: httpx.Response(200, json=said))
    config = make_distil(
        teacher={"key_env": "TEACHER_KEY", "protocol": "anthropic", "model": "other"}, **shared
    )
    run(config, anthropic)
    assert anthropic.urls == ["http://teacher/v1/messages"]
    assert anthropic.headers[0]["x-api-key"] == "secret"
    assert anthropic.bodies[0]["system"] == "be brief"
    assert [m["role"] for m in anthropic.bodies[0]["messages"]] == ["user"]
    record = read_answers(Path(config.dir))[-1]
    assert (record["content"], record["reasoning"], record["output_tokens"]) == ("yes", "hm", 4)


def test_a_key_that_is_not_set_is_named(make_distil: MakeDistil) -> None:
    config = make_distil(teacher={"key_env": "NO_SUCH_KEY_HERE"})
    with pytest.raises(ConfigError, match="NO_SUCH_KEY_HERE, which is not set"):
        Teacher(echo).client(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {"url": "teacher"}}, r"teacher\.url is 'teacher'"),
        ({"teacher": {"terms": " "}}, r"teacher\.terms is empty"),
        ({"budget": {"cost": 1.0}}, "without teacher.input_price"),
        ({"budget": {"concurrency": 0}}, r"budget\.concurrency is 0; allowed: 1 and more"),
        ({"filters": {"refusals": ["("]}}, "is no regular expression"),
        ({"sampling": {"temperature": 1.0}}, "keys this version does not know: temperature"),
        ({"sampling": {"thinking": "yes"}}, "allowed: off, keep, strip"),
    ],
)
def test_what_is_not_allowed_is_named(make_distil: MakeDistil, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_distil(**changes)
