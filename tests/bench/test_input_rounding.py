"""bench/input_rounding.py: the rules, and one of them against what the kernels do."""

from __future__ import annotations

import pytest
import torch

from bench.input_rounding import RULES, int8, measure
from fourfold.kernels.formats import round_int8_groups, to_int8


def test_groups_of_a_whole_row_are_those_of_a_token():
    x = torch.randn(3, 64)
    codes, scale = to_int8(x)
    assert torch.equal(int8(x, 512), codes * scale)
    assert torch.allclose(int8(x, 32), round_int8_groups(x), atol=1e-6)


def test_no_rounding_of_experts_is_as_far_as_eight_bits(tiny_folder):
    found = measure(tiny_folder, 40)
    assert set(found) > set(RULES)
    sixteen, eight = found["16 bits, groups of 512"].kl, found["int8, one scale a token"].kl
    assert 0 < sixteen < eight
    native = next((kl.kl for name, kl in found.items() if name == "fast on amx"), sixteen)
    assert native == pytest.approx(sixteen, rel=0.5)
