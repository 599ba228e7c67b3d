"""Losses against their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fourfold.train import losses
from fourfold.train.data import IGNORE
from fourfold.train.losses import head_cross_entropy, sequence_balance, update_bias


@pytest.mark.parametrize("chunk", [3, 1000])
def test_head_cross_entropy_has_the_values_and_gradients_of_logits(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 5, 8, generator=generator), torch.randn(11, 8, generator=generator)
    targets = torch.tensor([[1, 2, IGNORE, 4, 5], [IGNORE, 0, 10, 9, IGNORE]])
    grads = []
    for ours in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if ours:
            loss = head_cross_entropy(h, w, targets, torch.float32)
        else:
            loss = F.cross_entropy((h @ w.T).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        (3 * loss).backward()
        grads.append((loss.detach(), h.grad, w.grad))
    for mine, reference in zip(*grads, strict=True):
        torch.testing.assert_close(mine, reference)


def test_no_target_at_all_is_zero() -> None:
    hidden, weight = torch.ones(1, 2, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    loss = head_cross_entropy(hidden, weight, torch.full((1, 2), IGNORE), torch.float32)
    loss.backward()
    assert loss == 0 and hidden.grad is not None and hidden.grad.abs().max() == 0


def test_balance_is_one_when_even_and_larger_when_not() -> None:
    even = torch.full((8, 4), 0.25)
    chosen = torch.tensor([[0, 1], [2, 3]]).repeat(4, 1)
    assert sequence_balance(even, chosen, 2) == pytest.approx(1.0)
    lopsided = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).repeat(8, 1)
    assert sequence_balance(lopsided, torch.tensor([[0, 1]]).repeat(8, 1), 2) > 1.5


def test_bias_follows_the_load() -> None:
    bias = torch.zeros(4)
    busiest = update_bias(bias, torch.tensor([4, 2, 2, 0]), 0.001)
    assert busiest == pytest.approx(2.0)
    torch.testing.assert_close(bias, torch.tensor([-0.001, 0.0, 0.0, 0.001]))
