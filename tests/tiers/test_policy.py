"""Whose next use is expected last."""

from __future__ import annotations

import numpy as np

from fourfold.tiers.policy import NextUse


def order(policy, layer, tokens, experts):
    """Experts from the first to be evicted to the last."""
    numbers = np.array(experts)
    return numbers[np.argsort(-policy.distance(numbers, layer, tokens), kind="stable")].tolist()


def test_a_prefill_evicts_what_it_has_just_finished_with():
    policy = NextUse(layers=4, per_layer=2)
    for layer in range(4):
        policy.used(layer, np.array([300, 300]), 300)
    # Layer 2 runs: 2 is a whole round away, then 1, 0, and 3 comes next.
    assert order(policy, 2, 300, [0, 2, 4, 6]) == [4, 2, 0, 6]


def test_single_tokens_keep_what_is_used_often():
    policy = NextUse(layers=2, per_layer=3)
    for token in range(200):
        for layer in range(2):
            policy.used(layer, np.array([1, token % 2, token % 10 == 0], dtype=np.int64), 1)
    assert order(policy, 1, 1, [0, 1, 2, 3, 4, 5]) == [5, 2, 4, 1, 3, 0]


def test_what_was_never_used_goes_first_and_shares_fade():
    policy = NextUse(layers=1, per_layer=3)
    policy.used(0, np.array([1, 0, 0]), 1)
    for _ in range(50):
        policy.used(0, np.array([0, 1, 0]), 1)
    assert order(policy, 0, 1, [0, 1, 2]) == [2, 0, 1]


def test_a_chunk_weighs_as_its_tokens_do():
    once, single = NextUse(1, 2), NextUse(1, 2)
    once.used(0, np.array([40, 0]), 40)
    for _ in range(40):
        single.used(0, np.array([1, 0]), 1)
    experts = np.array([0])
    assert np.allclose(once.distance(experts, 0, 1), single.distance(experts, 0, 1))
