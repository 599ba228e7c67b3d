"""Distances between logits, and the passage that they are measured on."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from fourfold.conformance import checkpoint, passage
from fourfold.conformance.logits import distance, drift, kl_divergence
from fourfold.conformance.report import NotExercised
from fourfold.tokenizer import tokenizer


def test_kl_is_zero_for_equals_and_positive_otherwise():
    p, q = torch.randn(2, 1, 5, 11).unbind()
    assert float(kl_divergence(p, p).abs().max()) < 1e-12
    assert float(kl_divergence(p, q).min()) > 0


def test_kl_of_two_coins():
    p, q = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3)]])
    assert float(kl_divergence(p, q)) == pytest.approx(math.log(2) - 0.5 * math.log(3))


def test_distance_judges_the_median_position():
    expected = torch.randn(1, 9, 50)
    got = expected.clone()
    got[0, 3] = -got[0, 3]
    found = distance(got, expected)
    assert found.typical == 0.0
    assert found.same_choice == pytest.approx(8 / 9)
    assert found.kl == pytest.approx(found.kl_max / 9)
    assert found.max_abs == pytest.approx(2 * float(expected[0, 3].abs().max()))
    assert distance(expected + 0.1, expected).kl < 1e-12
    assert distance(expected + 0.1, expected).typical == pytest.approx(0.1 / float(expected.std()), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_infinitely_far(bad):
    expected = torch.zeros(1, 3, 4)
    found = distance(torch.full_like(expected, bad), expected)
    assert (found.typical, found.kl, found.same_choice) == (math.inf, math.inf, 0.0)
    assert drift([torch.full((1, 2, 3, 4), bad)], [torch.ones(1, 2, 3, 4)], ["swa"]) == {"swa": math.inf}


def test_drift_is_that_of_the_worst_block_of_a_kind():
    ones = torch.ones(1, 3, 2, 4)
    assert drift([ones * 1.5, ones, ones * 1.25], [ones] * 3, ["csa", "swa", "csa"]) == {
        "csa": 0.5,
        "swa": 0.0,
    }


def model(tokenizer_file=None, **changes):
    config = SimpleNamespace(
        vocab_size=400,
        bos_token_id=0,
        index_topk=8,
        layer_kinds=("swa", "csa", "hca"),
        layer_ratios=(0, 4, 128),
        max_position_embeddings=4096,
    )
    vars(config).update(changes)
    found = None if tokenizer_file is None else tokenizer(tokenizer_file)
    return SimpleNamespace(config=config, device=torch.device("cpu"), tokenizer=found)


@pytest.mark.parametrize(
    ("changes", "length", "choosing"),
    [
        ({}, 320, 128),
        ({"index_topk": 128}, 516 + 128, 128),
        ({"index_topk": 128, "max_position_embeddings": 530}, 530, 15),
        ({"layer_kinds": ("swa",), "layer_ratios": (0,)}, 320, 0),
        ({"max_position_embeddings": 60}, 60, 25),
    ],
)
def test_the_passage_is_long_enough_for_the_indexer_to_choose(changes, length, choosing):
    stub = model(**changes)
    chosen, left_out = passage.choose(stub, active=1e6)
    assert (chosen.ids.shape, left_out) == ((1, length), [])
    assert chosen.measured == min(128, length)
    assert passage.choosing_queries(stub.config, chosen) == choosing


@pytest.mark.parametrize(
    ("changes", "active", "why"),
    [
        ({"index_topk": 512}, 13e9, "needs 2,052 tokens, 3e+13 multiply-adds; done on cpu up to 1e+12"),
        (
            {"index_topk": 512, "max_position_embeddings": 1024},
            1e6,
            "needs 2,052 tokens, the model has 1,024",
        ),
    ],
)
def test_what_costs_too_much_is_left_out_and_said(changes, active, why):
    chosen, left_out = passage.choose(model(**changes), active)
    assert left_out == [NotExercised("the indexer's choice", why)]
    assert chosen.ids.shape == (1, 320)


def test_the_end_of_the_passage_is_the_text(tokenizer_file):
    stub = model(tokenizer_file)
    chosen, _ = passage.choose(stub, active=1e6)
    ids = chosen.ids[0].tolist()
    assert ids[0] == 0
    assert passage.TEXT.startswith(stub.tokenizer.decode(ids[-chosen.measured :]))
    assert "Once upon" not in stub.tokenizer.decode(ids[: -chosen.measured])
    assert torch.equal(chosen.ids, passage.choose(stub, active=1e6)[0].ids)


def test_a_model_that_says_the_text_is_trained():
    ids = torch.randint(0, 50, (1, 40), generator=torch.Generator().manual_seed(0))
    chosen = passage.Passage(ids, 20)
    logits = torch.zeros(1, 20, 50)
    assert not checkpoint._is_trained(logits, chosen)
    logits[0, torch.arange(19), ids[0, 21:]] = 3.0
    assert checkpoint._is_trained(logits, chosen)
    assert not checkpoint._is_trained(logits[:, :1], passage.Passage(ids, 1))
