"""Answers: split as the publisher's parser splits them, and where it would lose text it is kept."""

from __future__ import annotations

import json
from typing import Any

import deepseek_recipe as recipe
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.protocol import AnswerParser, CallDelta, Stage, TextDelta

OPEN, CLOSE = "\n\n<｜DSML｜tool_calls>\n", "</｜DSML｜tool_calls>"
INVOKE, INVOKED = '<｜DSML｜invoke name="f">\n', "</｜DSML｜invoke>\n"
STRING, VALUE = '<｜DSML｜parameter name="k" string="true">', '<｜DSML｜parameter name="k" string="false">'
END = "</｜DSML｜parameter>\n"
CALL = OPEN + INVOKE + STRING + "v" + END + INVOKED + CLOSE
CALLED = ("f", '{"k": "v"}')
THINKING = Stage(thinking=True, reasoning=True)


def read(text, step=1000, *, thinking=True, complete=True, **options):
    """What was parsed, neighbours joined: ("think" | "text" | number of the call, …)."""
    parser = AnswerParser(THINKING if thinking else Stage(), **{"tools": True, **options})
    parts = [part for i in range(0, len(text), step) for part in parser.push(text[i : i + step])]
    found: list[list[Any]] = []
    for part in [*parts, *parser.finish(complete=complete)]:
        kind = part.index if isinstance(part, CallDelta) else "think" if part.reasoning else "text"
        new = [kind, part.name, part.arguments] if isinstance(part, CallDelta) else [kind, part.text]
        if found and found[-1][0] == kind:
            found[-1] = [kind, *(old + more for old, more in zip(found[-1][1:], new[1:], strict=True))]
        else:
            found.append(new)
    return [tuple(one) for one in found]


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "thinking", "found"),
    [
        ("why</think>because", True, [("think", "why"), ("text", "because")]),
        ("never closed", True, [("think", "never closed")]),
        ("cut in </thi", True, [("think", "cut in </thi")]),
        ("plain", False, [("text", "plain")]),
        ("a < b <thi\n\n", False, [("text", "a < b <thi\n\n")]),
        ("a <｜DSM", False, [("text", "a <｜DSM")]),
        ("", True, []),
        ("a</think>ok" + CALL, True, [("think", "a"), ("text", "ok"), (0, *CALLED)]),
        ("a" + CALL + "b</think>c", True, [("think", "a"), (0, *CALLED), ("think", "b"), ("text", "c")]),
        (CALL + "\n", False, [(0, *CALLED)]),
        (CALL + " and then\n", False, [(0, *CALLED), ("text", " and then\n")]),
        (CALL + CALL, False, [(0, *CALLED), (1, *CALLED)]),
        (CALL + "x" + CALL, False, [(0, *CALLED), ("text", "x"), (1, *CALLED)]),
        (OPEN + INVOKE + INVOKED + CLOSE, False, [(0, "f", "{}")]),
        (OPEN + INVOKE + VALUE + "[1,\n2]" + END + INVOKED + CLOSE, False, [(0, "f", '{"k": [1,\n2]}')]),
        (OPEN + INVOKE + VALUE + "no JSON" + END + INVOKED + CLOSE, False, [(0, "f", '{"k": "no JSON"}')]),
        (OPEN + INVOKE + VALUE + "NaN" + END + INVOKED + CLOSE, False, [(0, "f", '{"k": "NaN"}')]),
        (
            OPEN + INVOKE + "stray" + STRING + "v" + END + INVOKED + CLOSE,
            False,
            [(0, *CALLED), ("text", "\nstray")],
        ),
        (
            OPEN + "stray" + INVOKE + STRING + "v" + END + INVOKED + CLOSE,
            False,
            [("text", "stray"), (0, *CALLED)],
        ),
        (OPEN + "stray" + CLOSE + "x", False, [("text", OPEN + "stray" + CLOSE + "x")]),
    ],
)
def test_answers(text, thinking, found, step):
    assert read(text, step, thinking=thinking) == found


def test_without_tools_a_call_is_text():
    assert read(CALL, thinking=False, tools=False) == [("text", CALL.lstrip())]


@pytest.mark.parametrize("cut", range(len(CALL)))
@pytest.mark.parametrize("complete", [True, False])
def test_a_call_cut_short_is_never_valid_json_of_less(cut, complete):
    """Cut by the limit: arguments that are no JSON, for nobody must run half a command."""
    found = read("ok" + CALL[:cut], 5, thinking=False, complete=complete)
    assert found[0][1].startswith("ok")
    (call,) = [one for one in found if one[0] == 0] or [None]
    if call is None:
        assert found == [("text", "ok" + CALL[:cut])]
    elif call[2] and json_or_none(call[2]) not in (None, {}):
        assert json.loads(call[2]) == {"k": "v"}


def json_or_none(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def test_a_required_call_begins_inside_its_block():
    parser = AnswerParser(Stage(opened=True), tools=True)
    parts = parser.push(CALL.removeprefix(OPEN) + "after")
    assert [part.name for part in parts if isinstance(part, CallDelta)] == ["f"]
    assert parts[-1] == TextDelta("after") and parser.called


@pytest.mark.parametrize("step", [1, 4, 1000])
def test_stop_strings_end_the_content_and_nothing_else(step):
    text = "STOP thought</think>content STOP more" + CALL
    assert read(text, step, stop=["STOP"]) == [("think", "STOP thought"), ("text", "content ")]
    inside = CALL.replace(">v<", ">STOP<")
    assert read("a</think>b" + inside, step, stop=["STOP"])[-1] == (0, "f", '{"k": "STOP"}')
    parser = AnswerParser(stop=["x", "END"])
    parser.push("a END")
    assert parser.stop_sequence == "END" and parser.ended and parser.push("b") == parser.finish() == []


PIECE = st.sampled_from(
    [
        OPEN,
        CLOSE,
        INVOKE,
        INVOKED,
        STRING,
        VALUE,
        END,
        CALL,
        "</think>",
        "<｜DSML｜",
        "</｜DSML｜",
        "<",
        ">",
        "\n",
    ]
) | st.text(st.sampled_from('ab<>/｜DSML"= \n1é'), max_size=6)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECE, max_size=12).map("".join), st.booleans(), st.booleans(), st.integers(1, 9))
def test_any_text_survives_any_cut(text, thinking, complete, step):
    whole = read(text, thinking=thinking, complete=complete)
    assert read(text, step, thinking=thinking, complete=complete) == whole
    shown = "".join(piece for one in whole for piece in one[1:])
    assert all(shown.count(letter) == text.count(letter) for letter in "é1")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
            st.dictionaries(
                st.from_regex(r"[a-z]{1,5}", fullmatch=True),
                st.text(st.characters(codec="utf-8", exclude_characters="<"))
                | st.integers()
                | st.lists(st.booleans()),
                max_size=3,
            ),
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 20),
)
def test_calls_are_what_the_publishers_parser_makes_of_them(calls, step):
    text = OPEN
    for name, arguments in calls:
        text += f'<｜DSML｜invoke name="{name}">\n'
        for key, value in arguments.items():
            own = value if isinstance(value, str) else json.dumps(value)
            is_text = "true" if isinstance(value, str) else "false"
            text += f'<｜DSML｜parameter name="{key}" string="{is_text}">{own}{END}'
        text += INVOKED
    text += CLOSE
    found = read("so" + text, step, thinking=False)
    assert found[0] == ("text", "so")
    assert [(name, json.loads(own)) for _, name, own in found[1:]] == calls
    assert [(name, json.loads(own)) for name, own in theirs("so" + text)] == calls


def theirs(text):
    body = {"model": "DeepSeek-V4-Pro", "messages": [{"role": "user", "content": "x"}], "stream": True}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    body |= {"thinking": {"type": "disabled"}, "tools": [tool]}
    request = recipe.ChatCompletionRequest(body).convert(recipe.ConversionOptions())
    processor = recipe.StreamProcessor(
        recipe.ChatCompletionRequest.chunk_generator(request, "", ""), request.parsing_options
    )
    chunks = [
        *processor.push(recipe.InferenceChunk.ready()),
        *processor.push(recipe.InferenceChunk.text(text, 1)),
        *processor.push(recipe.InferenceChunk.finish(recipe.InferenceFinishReason.Stop)),
        *processor.finish(),
    ]
    calls: dict[int, list[str]] = {}
    for chunk in chunks:
        for call in json.loads(chunk.to_json())["choices"][0]["delta"].get("tool_calls") or ():
            own = calls.setdefault(call["index"], ["", ""])
            own[0] += call["function"].get("name") or ""
            own[1] += call["function"].get("arguments") or ""
    return calls.values()
