"""Masks of grammars, drawn from without an engine: whatever a schema says, and nonsense for schemas."""

from __future__ import annotations

import json
import random
from contextlib import suppress

import jsonschema_rs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourfold.engine.constraint import Constraint
from fourfold.engine.grammar import Grammars
from fourfold.engine.masks import Stuck
from fourfold.errors import RequestError
from tests.engine.test_constraints import PERSON
from tests.protocol.test_tool_grammar import tool

INT, COUNT = st.integers(-200, 200), st.integers(0, 3)
JSON = st.recursive(
    st.none() | st.booleans() | INT | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=3,
)


SMALL = (
    st.builds(lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, INT, COUNT)
    | st.builds(lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, COUNT, COUNT)
    | st.builds(lambda values: {"enum": values}, st.lists(JSON, min_size=1, max_size=3, unique_by=repr))
    | st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["null", "boolean"]}])
)


def larger(inner):
    """Arrays, objects and choices of schemas."""
    arrays = st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        inner,
        COUNT,
        COUNT,
    )
    objects = st.builds(
        lambda properties, needed: {
            "type": "object",
            "properties": properties,
            "required": [name for i, name in enumerate(properties) if needed >> i & 1],
            "additionalProperties": False,
        },
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.integers(0, 7),
    )
    return arrays | objects | st.builds(lambda of: {"anyOf": of}, st.lists(inner, min_size=1, max_size=2))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=st.recursive(SMALL, larger, max_leaves=5), seed=st.integers(0, 1000))
def test_any_schema_of_bounded_values_is_followed(stub, schema, seed):
    """Whatever is drawn from the masks ends by itself and follows the schema."""
    grammars, choose = Grammars(stub.tokenizer, 400, 1), random.Random(seed)
    ids: list[int] = []
    masks = grammars.start(Constraint.json(schema))
    while not ids or ids[-1] != 1:
        ids.append(choose.choice(masks.after().nonzero().flatten().tolist()))
        if ids[-1] != 1:
            masks.accept(ids[-1:])
    grammars.close()
    jsonschema_rs.validator_for(schema).validate(json.loads(stub.tokenizer.decode(ids[:-1])))


WORDS = [
    *(
        "type",
        "properties",
        "required",
        "$defs",
        "$ref",
        "anyOf",
        "allOf",
        "enum",
        "const",
        "items",
        "minItems",
    ),
    *("multipleOf", "minimum", "pattern", "format", "additionalProperties", "not", "x-guidance", "a"),
]
NONSENSE = st.recursive(
    JSON
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["object", "#/$defs/a", "#", "("]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(NONSENSE)
def test_nonsense_is_compiled_or_refused(stub, nonsense):
    parameters = {"type": "object", "properties": {"a": nonsense, "b": nonsense}, "$defs": {"a": nonsense}}
    grammars = Grammars(stub.tokenizer, 400, 1)
    for own in (nonsense, parameters):
        for make in (Constraint.json, lambda own: Constraint.tool_calls([tool("f", own)], opened=True)):
            with suppress(RequestError):
                assert grammars.start(make(own)).after().any()
    grammars.close()


def test_drafted_tokens_get_the_masks_that_accepted_ones_get(stub):
    grammars = Grammars(stub.tokenizer, 400, 1)
    own, other = (grammars.start(Constraint.json(PERSON)) for _ in range(2))
    noise = torch.Generator().manual_seed(0)
    for _ in range(6):
        drafted: list[int] = []
        while len(drafted) < 3:
            ready = other.after().nonzero().flatten()
            token = int(ready[torch.randint(len(ready), (1,), generator=noise)])
            if token == 1:
                break
            drafted.append(token)
            other.accept([token])
            expected = other.after()
            if len(drafted) == 3:
                own.draft(drafted)
            assert torch.equal(own.after(drafted), expected)
        with pytest.raises(Stuck):
            own.after([*drafted, 2])
        own.accept(drafted)
        assert torch.equal(own.after(), other.after())
    grammars.close()


def test_a_mask_covers_ids_that_only_the_model_has(stub):
    grammars = Grammars(stub.tokenizer, 450, 1)
    first = grammars.start(Constraint.regex("(.|\n)*")).after()
    assert first.shape == (450,)
    assert not first[400:].any()
    assert not first[[0, *range(2, 8)]].any()  # special tokens are no text
    assert first[[1, *stub.tokenizer.encode("any text")]].all()
    own = grammars.start(Constraint.regex("ab"))
    own.accept(stub.tokenizer.encode("zz"))
    with pytest.raises(Stuck):
        own.after()
    grammars.close()
