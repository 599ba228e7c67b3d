"""Sampling: the distribution it draws from, the filters, and randomness by seed and position."""

from __future__ import annotations

import math

import pytest
import torch

from fourfold.engine.sampler import (
    Sampling,
    distribution,
    keep_top_k,
    keep_top_p,
    mix,
    sample,
)
from fourfold.errors import RequestError

LOGITS = torch.log(torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]))


def test_greedy_takes_the_largest_and_the_lower_id_of_equals():
    assert sample(torch.tensor([0.0, 3.0, 3.0]), Sampling(temperature=0.0), position=0) == 1


def test_temperature_one_is_the_softmax():
    torch.testing.assert_close(distribution(LOGITS, Sampling()), LOGITS.softmax(-1))


def test_low_temperature_sharpens_and_high_flattens():
    cold, hot = (distribution(LOGITS, Sampling(temperature=t)) for t in (0.5, 2.0))
    assert cold[0] > 0.5 > hot[0]
    assert torch.isfinite(distribution(LOGITS * 1e4, Sampling(temperature=1e-3))).all()


@pytest.mark.parametrize("temperature", [1e-40, 5e-324, 1e-30, 1e-6])
def test_the_coldest_temperatures_are_greedy(temperature):
    logits = torch.tensor([[1e4, -math.inf, 2e4, 1e4], [0.0, -3.0, -4.0, -math.inf]])
    cold = distribution(logits, Sampling(temperature=temperature))
    assert torch.equal(cold, distribution(logits, Sampling(temperature=0.0)))
    assert sample(logits[0], Sampling(temperature=temperature, seed=1), 0) == 2


def test_top_p_reads_what_top_k_left():
    """0.5, 0.2 and 0.15 are 0.59, 0.24 and 0.18 of what is left: two of them reach 0.8, not three."""
    kept = distribution(LOGITS, Sampling(top_k=3, top_p=0.8))
    torch.testing.assert_close(kept, torch.tensor([0.5, 0.2, 0.0, 0.0, 0.0]) / 0.7)


@pytest.mark.parametrize(("p", "kept"), [(0.4, 1), (0.5, 1), (0.51, 2), (0.7, 2), (0.85, 3), (1e-9, 1)])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p, kept):
    probabilities = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64)
    assert int((keep_top_p(probabilities, p) > 0).sum()) == kept


@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0, 8.0])
@pytest.mark.parametrize("p", [1e-6, 0.5, 0.95, 0.9999])
def test_top_p_is_that_of_the_whole_vocabulary_in_order(spread, p):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, 3000, generator=generator) * spread * 8).round() / 8  # with ties
    probabilities = torch.softmax(logits, dim=-1)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = torch.nn.functional.pad(ordered.double().cumsum(dim=-1)[..., :-1], (1, 0))
    kept = torch.where(before < p, ordered, 0.0)
    want = torch.zeros_like(probabilities).scatter_(-1, order, kept)
    assert torch.equal(keep_top_p(probabilities, p), want)


def test_top_k_breaks_ties_to_the_lower_id():
    assert keep_top_k(torch.tensor([0.1, 0.3, 0.3, 0.3]), 2).nonzero().flatten().tolist() == [1, 2]
    rows = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]])
    assert torch.equal(keep_top_k(rows, 3), rows * torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]))


def test_min_p_is_relative_to_the_most_likely():
    assert int((distribution(LOGITS, Sampling(min_p=0.25)) > 0).sum()) == 3


def test_filters_leave_a_distribution():
    kept = distribution(LOGITS, Sampling(temperature=0.7, top_p=0.8, top_k=3, min_p=0.1))
    assert float(kept.sum()) == pytest.approx(1.0)


def test_the_number_of_threads_changes_no_bit():
    """Of a vocabulary as long as the published one: torch shares such sums among its threads."""
    logits = torch.randn(40, 129_280, generator=torch.Generator().manual_seed(0)) * 3
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(torch.stack([distribution(row, Sampling(min_p=1e-6)) for row in logits]))
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_samples_follow_the_distribution():
    draws = 6_000
    counts = torch.zeros(5)
    for position in range(draws):
        counts[sample(LOGITS, Sampling(seed=7), position)] += 1
    expected = LOGITS.softmax(-1)
    spread = (expected * (1 - expected) / draws).sqrt()
    assert ((counts / draws - expected).abs() < 4.5 * spread).all()


def test_seed_and_position_alone_decide():
    a = [sample(LOGITS, Sampling(seed=1), position) for position in range(50)]
    torch.manual_seed(123)
    assert a == [sample(LOGITS, Sampling(seed=1), position) for position in range(50)]
    assert a != [sample(LOGITS, Sampling(seed=2), position) for position in range(50)]
    state = torch.random.get_rng_state()
    sample(LOGITS, Sampling(seed=1), 2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_near_seeds_and_positions_share_nothing():
    seen = {mix(seed, position) for seed in range(100) for position in range(100)}
    assert len(seen) == 10_000


def test_forbidden_tokens_never_come():
    logits = torch.tensor([-math.inf, 0.0, -math.inf])
    assert {sample(logits, Sampling(seed=s), 0) for s in range(50)} == {1}


def test_no_seed_draws_one():
    assert Sampling().seeded().seed is not None
    assert Sampling(seed=3).seeded().seed == 3


@pytest.mark.parametrize("logits", [[math.nan, 1.0], [math.inf, 1.0], [-math.inf, -math.inf]])
def test_invalid_logits_are_refused(logits):
    with pytest.raises(RequestError, match="position 5"):
        sample(torch.tensor(logits), Sampling(seed=1), position=5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "1"),
        ("temperature", 101),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -1.0),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", True),
        ("seed", -1),
        ("seed", 1 << 63),
        ("seed", 1.0),
    ],
)
def test_bad_arguments_name_the_value_and_what_is_allowed(name, value):
    with pytest.raises(RequestError, match=rf"{name} is .*; allowed: "):
        Sampling(**{name: value})
