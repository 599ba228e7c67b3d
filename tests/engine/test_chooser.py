"""Penalties, biases and what must not come: against the definitions, and drafted tokens as accepted ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.engine.chooser import Chooser
from fourfold.engine.sampler import Sampling, sample
from fourfold.errors import RequestError

V = 12
NONE = torch.empty(0, dtype=torch.int64)
TOKENS = st.lists(st.integers(0, V - 1), max_size=12)
LOGITS = st.lists(st.floats(-9, 9, width=32), min_size=V, max_size=V)
SAMPLINGS = st.builds(
    Sampling,
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3]),
    presence_penalty=st.sampled_from([0.0, -1.5, 2.0]),
    frequency_penalty=st.sampled_from([0.0, -0.25, 0.75]),
    logit_bias=st.dictionaries(st.integers(0, V - 1), st.sampled_from([-100.0, -1.0, 2.5]), max_size=3),
)


def by_definition(logits, sampling, prompt: list[int], answer: list[int]) -> list[float]:
    """OpenAI: mu[j] - c[j] * frequency - (c[j] > 0) * presence, c[j] counts in the answer.  CTRL's repetition
    penalty reads the prompt, too.  The bias is added first, as vLLM does."""
    out = []
    for j, logit in enumerate(logits):
        x = logit + sampling.logit_bias.get(j, 0.0)
        if j in prompt or j in answer:
            x = x / sampling.repetition_penalty if x > 0 else x * sampling.repetition_penalty
        count = answer.count(j)
        out.append(x - count * sampling.frequency_penalty - (count > 0) * sampling.presence_penalty)
    return out


@settings(deadline=None)
@given(LOGITS, SAMPLINGS, TOKENS, TOKENS, TOKENS)
def test_penalties_are_those_of_the_definition(logits, sampling, prompt, answer, drafted):
    chooser = Chooser(sampling, prompt, V, NONE)
    for token in answer:
        chooser.accept([token])
    row = torch.tensor(logits)
    expected = torch.tensor(by_definition(logits, sampling, prompt, answer + drafted))
    found = chooser.processed(row, drafted)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(row, torch.tensor(logits))
    assert torch.equal(chooser.processed(row), chooser.processed(row, ()))
    chooser.accept(drafted)
    assert torch.equal(chooser.processed(row), found)


def test_without_anything_to_do_the_logits_are_the_models():
    row = torch.randn(V)
    assert Chooser(Sampling(), [1, 2], V, NONE).processed(row) is row


def test_what_cannot_be_written_never_comes_and_what_ends_not_early():
    chooser = Chooser(Sampling(), [], V, torch.tensor([11]), ends=frozenset({1, 3}), min_tokens=2)
    row = torch.zeros(V)
    assert chooser.processed(row).isinf().nonzero().flatten().tolist() == [1, 3, 11]
    chooser.accept([5])
    assert chooser.processed(row).isinf().nonzero().flatten().tolist() == [1, 3, 11]
    assert chooser.processed(row, [5]).isinf().nonzero().flatten().tolist() == [11]


def test_a_bias_of_100_decides():
    row = torch.randn(V)
    for token in range(V):
        own = Sampling(logit_bias={token: 100}, seed=token)
        assert sample(Chooser(own, [], V, NONE).processed(row), own, 0) == token


def test_choices_have_seeds_of_their_own():
    own = Sampling(seed=7)
    seeds = [own.derived(i).seed for i in range(100)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 100
    assert seeds == [own.derived(i).seed for i in range(100)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 0),
        ("repetition_penalty", math.inf),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", "1"),
        ("logit_bias", {3: 101}),
        ("logit_bias", {-1: 1}),
        ("logit_bias", {"3": 1}),
    ],
)
def test_bad_arguments_name_the_value_and_what_is_allowed(name, value):
    with pytest.raises(RequestError, match=rf"{name}.* is .*; allowed: "):
        Sampling(**{name: value})
