"""The draw of a token: exponential waits, and the reference's choice on every instruction set."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from fourfold.engine.sampler import mix
from fourfold.kernels import cpu
from fourfold.kernels.draw import draw, reference, waits

ISAS = [] if cpu.native is None else cpu.native.supported_isas()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    assert cpu.native is not None
    before = cpu.native.isa()
    assert cpu.native.use_isa(request.param)
    yield request.param
    cpu.native.use_isa(before)


def test_waits_are_exponential_and_independent_of_each_other():
    """Against the quantiles of Exp(1), Kolmogorov's bound for p = 1e-6; and the smallest, which decide."""
    found = torch.cat([waits(50_000, mix(1, i)) for i in range(4)])
    found = found.double().sort().values
    assert float(found[0]) > 0
    steps = torch.arange(1, len(found) + 1, dtype=torch.float64) / len(found)
    assert float((1 - torch.exp(-found) - steps).abs().max()) < 2.7 / len(found) ** 0.5
    least = torch.stack([waits(1000, mix(2, position)).min() for position in range(3000)]).double() * 1000
    assert float(least.mean()) == pytest.approx(1.0, abs=5 / 3000**0.5)
    one, next_ = waits(50_000, mix(3, 7)), waits(50_000, mix(3, 8))
    assert abs(float(torch.corrcoef(torch.stack([one, next_]))[0, 1])) < 5 / 50_000**0.5
    assert abs(float(torch.corrcoef(torch.stack([one[1:], one[:-1]]))[0, 1])) < 5 / 50_000**0.5


def test_waits_are_the_logarithm_of_the_mixed_bits():
    key = mix(5, 6)
    for token, wait in enumerate(waits(2000, key).tolist()):
        x = mix(key, token)
        assert wait == pytest.approx(-math.log1p(-x / 2**64), rel=3e-6)


@pytest.mark.parametrize("size", [1, 255, 257, 8192])
def test_every_instruction_set_draws_as_the_reference(isa, size):
    generator = torch.Generator().manual_seed(size)
    for i in range(40):
        logits = torch.randn(size, generator=generator) * 4
        logits[torch.rand(size, generator=generator) < 0.2] = -math.inf
        logits[i % size] = 0.0
        for temperature in (1e-30, 0.3, 1.0, 100.0):
            assert draw(logits, temperature, mix(9, i)) == reference(logits, temperature, mix(9, i))


def test_greedy_takes_the_lower_id_of_equals(isa):
    logits = torch.zeros(1000)
    logits[[300, 301, 999]] = 2.0
    assert draw(logits, 0.0, 0) == 300


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 17, 99])
def test_what_is_no_number_draws_nothing(isa, value, place):
    logits = torch.zeros(100)
    logits[place] = value
    assert draw(logits, 1.0, 3) == draw(logits, 0.0, 3) == reference(logits, 1.0, 3) == -1
    assert draw(torch.full((40,), -math.inf), 1.0, 3) == -1
