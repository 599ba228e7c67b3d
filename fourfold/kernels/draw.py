"""The draw of a token from logits: pure, and the same in every batch, order and process.

A race: token v starts with speed p_v = e^((l_v - max l) / temperature) and waits q_v ~ Exp(1); the first one
home, argmax p_v / q_v, is v with probability p_v / sum p.  The waits follow from a key and the token's id by
integer arithmetic, so that nothing is kept between draws, and two distributions that meet the same waits
agree nearly as often as they can.

Logits are on the CPU here: the extension's kernel draws, or the plain torch below, which is its reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fourfold.kernels import cpu

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ARTANH = (0.1215049680, 0.1071382110, 0.1430844304, 0.1999943885, 0.3333333781)
"""(artanh(s) / s - 1) / s^2 as a polynomial of s^2, for s up to 1/3."""
_LN2, _ROOT2 = 0.693147182, 1.41421354


def draw(logits: Tensor, temperature: float, key: int) -> int:
    """The token.  logits [V] f32; at temperature 0 the largest one's, of equals the lower id.

    key: 64 bits that stand for the position and the seed.  -1: a logit is NaN or the largest is infinite.
    """
    if cpu.native is not None and logits.dtype is torch.float32 and logits.is_contiguous():
        return cpu.native.draw(logits, temperature, key)
    return reference(logits, temperature, key)


def reference(logits: Tensor, temperature: float, key: int) -> int:
    """The same in plain torch."""
    logits = logits.float()
    peak = logits.max()
    if not bool(torch.isfinite(peak)):
        return -1
    if temperature == 0.0:
        return int(logits.argmax())
    return int((torch.exp((logits - peak) / temperature) / waits(len(logits), key)).argmax())


def waits(size: int, key: int) -> Tensor:
    """Exp(1) numbers of the tokens 0 to size - 1, as they follow from 64 bits.  [size] f32, above 0.

    Of 64 mixed bits x (splitmix64) the wait is -log(1 - x / 2^64).  The smallest waits win the race, and have
    full precision: the upper half of all x goes through -log of its distance to 2^64, the lower half through
    log1p, both as an artanh.
    """
    numbers = torch.arange(1, size + 1) * _signed(_GOLDEN) + _signed(key)
    mixed = (numbers ^ _shifted(numbers, 30)) * _signed(_FIRST)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(_SECOND)
    mixed = mixed ^ _shifted(mixed, 31)
    late = mixed < 0
    f = (torch.where(late, ~mixed, mixed).float() * 2.0**-64).clamp_min(2.0**-65)
    fraction, exponent = torch.frexp(f)
    fraction, exponent = 2 * fraction, exponent - 1
    big = fraction > _ROOT2
    m, exponent = torch.where(big, fraction / 2, fraction), exponent + big
    s = torch.where(late, m - 1, f) / torch.where(late, m + 1, 2 - f)
    square = s * s
    p = torch.full_like(s, _ARTANH[0])
    for coefficient in _ARTANH[1:]:
        p = p * square + coefficient
    log = 2 * s + 2 * s * (p * square)
    return torch.where(late, -(exponent.float() * _LN2 + log), log)


def _signed(bits: int) -> int:
    """The int64 with these 64 bits."""
    return bits - (1 << 64) if bits >> 63 else bits


def _shifted(x: Tensor, count: int) -> Tensor:
    """int64 as unsigned, shifted to the right."""
    return (x >> count) & ((1 << (64 - count)) - 1)
