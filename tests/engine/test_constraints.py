"""Constrained answers, of a model that says noise: all that end are what was asked for, by other judges.

JSON is read by the standard library and held against its schema by jsonschema-rs, expressions by `re`.
"""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema_rs
import pytest

import fourfold
from fourfold.engine import masks
from fourfold.engine.config import EngineConfig
from fourfold.engine.constraint import Constraint
from fourfold.engine.engine import Engine
from fourfold.engine.masks import Stuck, allowed
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from fourfold.errors import RequestError
from tests.engine.test_engine import engine, ids_of, is_empty
from tests.engine.test_speculative import with_oracle

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "é\n", None]}, "maxItems": 3},
        "size": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
LIST = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "boolean"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS = [
    PERSON,
    LIST,
    {"type": "string", "pattern": "^[A-Z]{2}\\d{1,4}$"},
    {"type": "array", "prefixItems": [{"const": 1}, {"multipleOf": 7, "type": "integer"}], "maxItems": 2},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2},
    {"type": "string", "format": "uuid"},
]


def outputs(stub, constraint: Constraint, count: int = 6, **more) -> list[str]:
    """Answers without a limit that came to an end, some at once and some with n."""
    found = []
    with engine(stub, blocks=400, running=3, step=16) as own:
        answers = [
            own.submit(
                Request(prompt=[20 + i] * 9, n=2, constraint=constraint, sampling=Sampling(seed=i), **more)
            )
            for i in range(count // 2)
        ]
        for answer in answers:
            list(own.chunks(answer))
            for choice in answer.choices:
                assert choice.finish_reason in ("stop", "length")
                if choice.finish_reason == "stop":
                    found.append(own.tokenizer.decode(choice.ids))
        assert is_empty(own)
    assert len(found) >= count // 2
    return found


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_json_of_a_schema(stub, schema):
    judge = jsonschema_rs.validator_for(schema, validate_formats=True)
    for text in outputs(stub, Constraint.json(schema)):
        judge.validate(json.loads(text))


def test_a_choice_among_many(stub):
    options = [f"option {i}" for i in range(5000)]
    assert set(outputs(stub, Constraint.choice(options))) <= set(options)


def test_any_json_object(stub):
    for text in outputs(stub, Constraint.json()):
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\d{3}-[a-z]{2,5}$",
        r"(foo|ba[rz])+x?",
        r'a/b\\c"d',
        "x\ny",
        r"\$[1-9]\d?\.\d\d",
        r"x\$",
        r"[^a-c]{2,6}",
    ],
)
def test_the_whole_answer_matches_an_expression(stub, pattern):
    for text in outputs(stub, Constraint.regex(pattern)):
        assert re.fullmatch(pattern, text, re.ASCII if r"\d" in pattern else re.UNICODE), text


def test_a_choice(stub):
    options = ["a", "ab", "abc", 'q"\\/\n\x00é｜', "{}"]
    found = {text for seed in range(4) for text in outputs(stub, Constraint.choice(options))}
    assert found <= set(options)
    with engine(stub) as own:
        for option in options:
            bias = dict.fromkeys(stub.tokenizer.encode(option), 100.0)
            sampling = Sampling(temperature=0.0, logit_bias=bias)
            answer = own.submit(
                Request(prompt=[20], constraint=Constraint.choice([option]), sampling=sampling)
            )
            assert "".join(chunk.text for chunk in own.chunks(answer)) == option


def test_reasoning_is_free_and_then_comes_what_was_asked_for(stub):
    end = stub.tokenizer.token_id("</think>")
    constraint = Constraint.json(PERSON).after_thinking()
    with engine(stub, blocks=400) as own:
        for seed in range(4):
            sampling = Sampling(seed=seed, logit_bias={end: 23})
            answer = own.submit(Request(prompt=[20], constraint=constraint, sampling=sampling))
            list(own.chunks(answer))
            _, text = own.tokenizer.decode(answer.ids).split("</think>")
            assert answer.finish_reason == "stop"
            jsonschema_rs.validator_for(PERSON).validate(json.loads(text))


def test_alone_and_in_company_a_constrained_answer_is_the_same(stub):
    request = Request(prompt=[20] * 30, constraint=Constraint.json(PERSON), sampling=Sampling(seed=5))
    with engine(stub, blocks=400) as own:
        alone = ids_of(own.stream(request))
    with engine(stub, blocks=60, running=3, step=8, saved_memory=0, snapshots=2) as own:
        beside = [own.submit(Request(prompt=[30 + i] * 40, max_tokens=60, priority=i)) for i in range(4)]
        assert ids_of(own.stream(request)) == alone
        for answer in beside:
            list(own.chunks(answer))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_change_nothing(stub, temperature):
    """Constraints, penalties, early ends and log probabilities, with drafts that are often wrong."""
    requests = [
        Request(
            prompt=[20, 21] * 8,
            n=2,
            max_tokens=60,
            min_tokens=3 * i,
            constraint=[Constraint.json(PERSON), Constraint.regex("[ab]{1,9}(x|yz)*"), None][i % 3],
            sampling=Sampling(
                temperature=temperature,
                seed=i,
                frequency_penalty=0.5,
                repetition_penalty=1.2,
                logit_bias={1: 20} if i % 2 else {},
            ),
            logprobs=2,
        )
        for i in range(6)
    ]
    found: list[list[Any]] = []
    for drafting in (False, True):
        with engine(stub, blocks=400) as own:
            if drafting:
                with_oracle(own, stub)
            answers = [own.submit(request) for request in requests]
            chunks = [list(own.chunks(answer)) for answer in answers]
            found.append([[choice.ids for choice in answer.choices] for answer in answers])
            found.append(sorted(str(chunk.logprobs) for each in chunks for chunk in each))
            found.append([choice.finish_reason for answer in answers for choice in answer.choices])
            assert own.stats().counters.accepted > 60 * drafting - 1
            assert is_empty(own)
    assert found[:3] == found[3:]


def test_the_token_that_ends_comes_when_nothing_else_may_whatever_min_tokens_says(stub):
    with engine(stub) as own:
        request = Request(prompt=[20], constraint=Constraint.regex("ab"), min_tokens=5, max_tokens=20)
        assert "".join(chunk.text for chunk in own.stream(request)) == "ab"
        request = Request(
            prompt=[20],
            constraint=Constraint.regex("a*"),
            min_tokens=5,
            sampling=Sampling(logit_bias={1: 30}),
        )
        assert len("".join(chunk.text for chunk in own.stream(request))) >= 5


def test_a_constraint_that_becomes_too_hard_ends_its_request_only(stub, monkeypatch):
    def too_hard(matcher, size):
        if matcher.validate_tokens(stub.tokenizer.encode("x")):
            raise Stuck("too complex")
        return allowed(matcher, size)

    with engine(stub) as own:
        hard, easy = (
            own.submit(Request(prompt=[20], constraint=Constraint.regex(pattern), sampling=Sampling(seed=1)))
            for pattern in ("[ab]{5}x", "[ab]{9}")
        )
        monkeypatch.setattr(masks, "allowed", too_hard)
        last = list(own.chunks(hard))[-1]
        assert (last.finish_reason, last.ids, len(hard.ids), hard.error) == ("constraint", (), 5, None)
        assert len(ids_of(own.chunks(easy))) == 9
        assert is_empty(own)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constraint.json({"type": "strng"}), "Invalid type: strng"),
        (lambda: Constraint.json({"type": "integer", "minimum": 5, "maximum": 3}), "Unsatisfiable schema"),
        (lambda: Constraint.json({"$ref": "#"}), "cannot be compiled"),
        (lambda: Constraint.json({"$ref": "http://example.com/x"}), "does not fetch"),
        (lambda: Constraint.json({"not": {}}), 'Unimplemented keys: \\["not"\\]'),
        (
            lambda: Constraint.json({"description": "x" * (1 << 18)}),
            "bytes; allowed: at most 262,144",
        ),
        (lambda: Constraint.json([]), r"the JSON schema is \[\]; allowed: an object"),
        (lambda: Constraint.json({"enum": [{1, 2}]}), "the JSON schema is no JSON"),
        (
            lambda: Constraint.json({"type": "integer", "multipleOf": 999_983}),
            r"multipleOf .* are \[999983\]",
        ),
        (lambda: Constraint.json({"allOf": [{"multipleOf": 97}, {"multipleOf": 1.07}]}), "in product"),
        (lambda: Constraint.regex("("), "unclosed group"),
        (lambda: Constraint.regex("(?=a)b"), "look-around"),
        (lambda: Constraint.regex("(" * 3000 + "a" + ")" * 3000), "nested parentheses"),
        (lambda: Constraint.regex(r"[^\x00-\x{10FFFF}]"), "cannot be compiled"),
        (lambda: Constraint.regex(None), "the regular expression is None; allowed: a text"),
        (lambda: Constraint.choice([]), r"the choice is \[\]; allowed"),
        (lambda: Constraint.choice("ab"), "the choice is 'ab'; allowed"),
        (lambda: Constraint.choice(["a", ""]), "the choice is .*; allowed"),
        (lambda: Constraint.tool_calls([{"type": "function"}]), "tools is .*; allowed"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(stub, make, message):
    with engine(stub) as own, pytest.raises(RequestError, match=message):
        own.submit(Request(prompt=[20], constraint=make()))
    assert stub.calls == []


@pytest.mark.parametrize("pattern", ["(a|b){1,50000}", "((a{1,100}){1,100}){1,100}", "((a|b)*a(a|b){30})"])
def test_large_expressions_are_compiled_quickly(stub, pattern):
    """Without a limit of our own on time: the library derives states as they are needed."""
    with engine(stub) as own:
        request = Request(prompt=[20], constraint=Constraint.regex(pattern), max_tokens=5)
        assert len(ids_of(own.stream(request))) == 5


def test_ignoring_the_end_and_a_constraint_exclude_each_other():
    with pytest.raises(RequestError, match="ignore_eos is True with a constraint; allowed: one of them"):
        Request(prompt=[20], ignore_eos=True, constraint=Constraint.json())


def test_a_real_model_that_was_never_trained(tiny_folder):
    model = fourfold.load(tiny_folder)
    schema = {**PERSON, "required": ["name", "age", "tags", "size"]}
    with Engine(model, EngineConfig(max_running=4)) as own:
        answers = [
            own.submit(
                Request(prompt="a", n=3, constraint=Constraint.json(schema), sampling=Sampling(seed=i))
            )
            for i in range(2)
        ]
        texts = []
        for answer in answers:
            list(own.chunks(answer))
            texts += [own.tokenizer.decode(c.ids) for c in answer.choices if c.finish_reason == "stop"]
    assert len(texts) >= 4
    for text in texts:
        jsonschema_rs.validator_for(schema).validate(json.loads(text))


def test_the_shipped_model():
    """It knows no JSON, and writes it all the same."""
    model = fourfold.load(fourfold.shipped_model(), numerics="fast")
    schema = {**PERSON, "required": ["name", "age", "tags", "size"]}
    kinds = [Constraint.json(schema), Constraint.regex(r"[A-Z][a-z]{1,9}( [a-z]{1,9}){3,9}\.")]
    with Engine(model, EngineConfig(max_running=4, memory="200MiB")) as own:
        answers = [
            own.submit(Request(prompt="Tell me.", n=2, constraint=kind, sampling=Sampling(seed=8)))
            for kind in kinds
        ]
        for answer in answers:
            list(own.chunks(answer))
            assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    people, sentences = ([own.tokenizer.decode(choice.ids) for choice in a.choices] for a in answers)
    for text in people:
        jsonschema_rs.validator_for(schema).validate(json.loads(text))
    assert all(re.fullmatch(r"[A-Z][a-z]{1,9}( [a-z]{1,9}){3,9}\.", text) for text in sentences)
