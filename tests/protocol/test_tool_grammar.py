"""The grammar of tool calls: what the publisher's format writes is in it, in whatever tokens; what is, can be
read and follows its schema."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

import fourfold
from fourfold.engine.constraint import Constraint
from fourfold.engine.grammar import Grammars
from fourfold.engine.masks import Stuck
from fourfold.errors import RequestError
from fourfold.tokenizer import Tokenizer

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "where"},
        "days": {"type": "integer", "minimum": 0, "maximum": 14},
        "unit": {"enum": ["C", "F"]},
        "when": {"type": ["string", "null"]},
        "flags": {"$ref": "#/$defs/flags"},
        "code": {"type": "string", "pattern": "^[ab]{1,3}$"},
        "note": {"anyOf": [{"type": "integer"}, {"type": "string", "enum": ["x<y", "z"]}]},
        "more": True,
    },
    "required": ["city", "days", "unit", "flags", "code"],
    "additionalProperties": False,
    "$defs": {
        "flags": {"type": "array", "items": {"$ref": "#/$defs/flag"}, "maxItems": 2},
        "flag": {"type": "boolean"},
    },
}


BRANCHES = {f"b{i}": {"anyOf": [{"$ref": f"#/$defs/b{i + 1}"}] * 16} for i in range(6)}
DOUBLING = {"properties": {"x": {"$ref": "#/$defs/b0"}}, "$defs": {**BRANCHES, "b6": {"type": "string"}}}


def tool(name: str, parameters: Any, strict: bool = True) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "strict": strict, "parameters": parameters}}


TOOLS = [
    tool("weather", WEATHER),
    tool("ping", {"type": "object"}, strict=False),
    tool("now", {"type": "object"}),
]
OPENING = "\n\n<｜DSML｜tool_calls>\n"
CALLS = """<｜DSML｜invoke name="weather">
<｜DSML｜parameter name="city" string="true">Paris</ a
</｜DSML｜parameter>
<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>
<｜DSML｜parameter name="unit" string="true">C</｜DSML｜parameter>
<｜DSML｜parameter name="when" string="false">null</｜DSML｜parameter>
<｜DSML｜parameter name="flags" string="false">[true, false]</｜DSML｜parameter>
<｜DSML｜parameter name="code" string="false">"ab"</｜DSML｜parameter>
<｜DSML｜parameter name="note" string="true">x<y</｜DSML｜parameter>
</｜DSML｜invoke>
<｜DSML｜invoke name="ping">
<｜DSML｜parameter name="q" string="false">{"a": [1, 2]}</｜DSML｜parameter>
</｜DSML｜invoke>
<｜DSML｜invoke name="now">
</｜DSML｜invoke>
</｜DSML｜tool_calls>"""


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    return fourfold.tokenizer(fourfold.shipped_model())


@pytest.fixture
def grammars(shipped: Tokenizer) -> Iterator[Grammars]:
    own = Grammars(shipped, shipped.vocab_size, 1)
    yield own
    own.close()


def any_tokens(tokenizer: Tokenizer, text: str, choose: random.Random) -> list[int]:
    """Some way to write a text in tokens."""
    special = set(tokenizer.special_ids.values())
    table = {tokenizer.bytes_of(i): i for i in range(tokenizer.vocab_size) if i not in special}
    ids = []
    for part in re.split("(｜DSML｜|</think>)", text):
        if part in tokenizer.special_ids:
            ids.append(tokenizer.special_ids[part])
            continue
        rest = part.encode()
        while rest:
            size = choose.choice([n for n in range(1, 10) if rest[:n] in table and n <= len(rest)])
            ids.append(table[rest[:size]])
            rest = rest[size:]
    return ids


def ends(grammars: Grammars, constraint: Constraint, ids: list[int]) -> bool:
    """Whether an answer may be these tokens and end."""
    masks = grammars.start(constraint)
    masks.accept(ids)
    try:
        return bool(masks.after()[1])
    except Stuck:
        return False


def sampled(grammars: Grammars, constraint: Constraint, ids: list[int]) -> bool:
    """Whether the masks, which leave one way of writing what is forced, let a model say this."""
    masks = grammars.start(constraint)
    for token in ids:
        if not masks.after()[token]:
            return False
        masks.accept([token])
    return bool(masks.after()[1])


def read(block: str) -> list[tuple[str, dict[str, Any]]]:
    """Names and arguments of the calls in a block after its opening; nothing else may be there."""
    call = r'<｜DSML｜invoke name="([^"]*)">\n(.*?)</｜DSML｜invoke>\n'
    value = r'<｜DSML｜parameter name="([^"]*)" string="(true|false)">(.*?)</｜DSML｜parameter>\n'
    assert re.sub(call, "", block, flags=re.S) == "</｜DSML｜tool_calls>"
    found = []
    for name, body in re.findall(call, block, re.S):
        assert re.sub(value, "", body, flags=re.S) == ""
        arguments = {
            key: text if string == "true" else json.loads(text)
            for key, string, text in re.findall(value, body, re.S)
        }
        found.append((name, arguments))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_trained_form_is_allowed_in_any_tokens(shipped, grammars, seed):
    choose = random.Random(seed)
    auto, opened = Constraint.tool_calls(TOOLS), Constraint.tool_calls(TOOLS, opened=True)
    for constraint, text in (
        (auto, "Let me look." + OPENING + CALLS),
        (auto, OPENING + CALLS),
        (auto, "I know: it rains."),
        (opened, CALLS),
        (auto.after_thinking(), "hm\n</think>" + OPENING + CALLS),
    ):
        assert sampled(grammars, constraint, shipped.encode(text, special=True))
        assert ends(grammars, constraint, any_tokens(shipped, text, choose))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name="weather"', 'name="other"'),
        ('string="false">2', 'string="false">15'),
        ('string="false">2', 'string="true">2'),
        (">C<", ">K<"),
        ('"ab"', '"abc"'),
        ('name="city"', 'name="town"'),
        ("[true, false]", "[true, false, true]"),
        ("</｜DSML｜tool_calls>", "</｜DSML｜tool_calls> and"),
        ("</｜DSML｜tool_calls>", ""),
        ('<｜DSML｜parameter name="unit" string="true">C</｜DSML｜parameter>\n', ""),
    ],
)
def test_what_breaks_the_form_or_a_schema_is_not(shipped, grammars, old, new):
    text = CALLS.replace(old, new, 1)
    assert text != CALLS
    assert not ends(grammars, Constraint.tool_calls(TOOLS, opened=True), shipped.encode(text, special=True))


@pytest.mark.parametrize("seed", range(3))
def test_random_calls_follow_their_schemas(shipped, grammars, seed):
    """Tokens are drawn evenly from what is allowed, those that end something more often."""
    choose, judge, calls = random.Random(seed), jsonschema_rs.validator_for(WEATHER), []
    mark = shipped.token_id("｜DSML｜")
    less, slash = shipped.encode("</")
    for _ in range(12):
        masks = grammars.start(Constraint.tool_calls(TOOLS, opened=True))
        ids: list[int] = []
        while len(ids) < 400 and (not ids or ids[-1] != 1):
            allowed = masks.after()
            likely = [
                t for t, share in ((1, 1), (slash, 0.6), (mark, 1), (less, 0.3)) if choose.random() < share
            ]
            token = next((t for t in likely if allowed[t]), None)
            ids.append(choose.choice(allowed.nonzero().flatten().tolist()) if token is None else token)
            if ids[-1] != 1:
                masks.accept(ids[-1:])
        if ids[-1] == 1:
            calls += read(shipped.decode(ids[:-1]))
    assert len(calls) >= 2
    for name, arguments in calls:
        assert name in ("weather", "ping", "now")
        assert name != "now" or arguments == {}
        if name == "weather":
            judge.validate(arguments)


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([tool('a"b', {})], "a tool is named 'a\"b'; allowed: 1 to 256 characters"),
        ([tool("f", {"properties": {"<": {}}})], "a parameter of tool 'f' is named '<'"),
        ([tool("f", {"type": "array"})], "the parameters of tool 'f' are no object's schema"),
        ([tool("f", {"properties": {"x": 3}})], "a parameter's schema is 3; allowed"),
        (
            [tool("f", {"properties": {"x": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"$ref": "#/$defs/x"}}})],
            "no reference to itself",
        ),
        (
            [tool("f", {"properties": {"x": {"type": "nothing"}}})],
            "cannot be compiled: .*Invalid type: nothing",
        ),
    ],
)
def test_tools_that_cannot_be_written_are_refused(grammars, tools, message):
    with pytest.raises(RequestError, match=message):
        grammars.start(Constraint.tool_calls(tools))
