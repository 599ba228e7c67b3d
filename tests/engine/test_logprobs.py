"""Log probabilities: against torch in float64, ties, and the number of threads."""

from __future__ import annotations

import pytest
import torch

from fourfold.engine.logprobs import token_logprob


@pytest.mark.parametrize("top", [0, 1, 5, 20, 300])
def test_they_are_the_log_softmax(top):
    logits = torch.randn(200, generator=torch.Generator().manual_seed(top)) * 5
    wanted = torch.log_softmax(logits.double(), dim=-1)
    for token in (0, int(logits.argmax()), 199):
        found = token_logprob(logits, token, top)
        assert found.token == token
        assert found.logprob == pytest.approx(float(wanted[token]), abs=1e-12)
        ids = [i for i, _ in found.top]
        assert ids == wanted.argsort(descending=True, stable=True)[:top].tolist()
        assert [x for _, x in found.top] == pytest.approx(wanted[ids].tolist(), abs=1e-12)


def test_of_equals_the_lower_id_is_first():
    found = token_logprob(torch.tensor([0.0, 2.0, 1.0, 2.0, 1.0, 1.0]), 0, 4)
    assert [i for i, _ in found.top] == [1, 3, 2, 4]


def test_the_number_of_threads_changes_no_bit():
    logits = torch.randn(10, 129_280, generator=torch.Generator().manual_seed(0)) * 3
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append([token_logprob(row, 5, 3) for row in logits])
    torch.set_num_threads(before)
    assert found[0] == found[1]
