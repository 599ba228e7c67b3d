"""From logits to a token: pure functions, and a randomness that depends on the seed and the position only.

The key of a draw (kernels/draw.py) comes from (seed, position) alone, so the same seed draws the same token
from the same probabilities whether the text was generated in one go, continued later, in a batch with others,
or after a rollback.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fourfold.errors import RequestError
from fourfold.kernels.draw import draw

_MASK = (1 << 64) - 1
_COLDEST = 1e-30  # below it a temperature is no longer a float32; the nearest token is chosen all the same
_PIECE = 1 << 14
_NUCLEUS = 128  # tokens among which top_p is first looked for


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen. Checked on construction: RequestError names the value and what is allowed.

    temperature: 0 = greedy, 1 = the model's own distribution, at most 100.
    top_p: keep the most likely tokens that together reach this probability, in (0, 1].
    top_k: keep at most this many tokens; 0 = all.
    min_p: drop tokens less likely than min_p times the most likely one, in [0, 1].
    repetition_penalty: divides positive and multiplies negative logits of tokens that the prompt or the
    answer has; above 0, at most 100, 1 = none.
    presence_penalty, frequency_penalty: what the logit of a token loses when the answer has it, and for each
    time that it has it; -2 to 2.
    logit_bias: token id -> what is added to its logit, -100 to 100.
    seed: 0 to 2^63 - 1, or None for a fresh one.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        warm = _in(self.temperature, 0, 100)
        _check("temperature", self.temperature, warm, "a number from 0 (greedy) to 100")
        top_p_ok = _in(self.top_p, 0, 1) and self.top_p > 0
        _check("top_p", self.top_p, top_p_ok, "a number above 0 and at most 1")
        _check("min_p", self.min_p, _in(self.min_p, 0, 1), "a number from 0 to 1")
        _check("top_k", self.top_k, _is_int(self.top_k) and self.top_k >= 0, "a whole number, 0 = no limit")
        repeats = _in(self.repetition_penalty, 0, 100) and self.repetition_penalty > 0
        _check("repetition_penalty", self.repetition_penalty, repeats, "a number above 0 and at most 100")
        for name in ("presence_penalty", "frequency_penalty"):
            _check(name, getattr(self, name), _in(getattr(self, name), -2, 2), "a number from -2 to 2")
        for token, bias in self.logit_bias.items():
            known = _is_int(token) and token >= 0
            _check("a token of logit_bias", token, known, "token ids, whole numbers from 0")
            _check(f"logit_bias of token {token}", bias, _in(bias, -100, 100), "a number from -100 to 100")
        seed_ok = self.seed is None or (_is_int(self.seed) and 0 <= self.seed < 1 << 63)
        _check("seed", self.seed, seed_ok, "a whole number from 0 to 2^63 - 1")

    @property
    def filters(self) -> bool:
        """Whether it leaves tokens out."""
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0

    def seeded(self) -> Sampling:
        """The same with a seed: its own, or a fresh random one."""
        if self.seed is not None:
            return self
        return replace(self, seed=secrets.randbits(63))

    def derived(self, index: int) -> Sampling:
        """That of choice `index`: the first has the seed itself, others have seeds that follow from it."""
        if index == 0 or self.seed is None:
            return self
        # Positions are not negative: no choice draws what another position of the first would.
        return replace(self, seed=mix(self.seed, -1 - index) >> 1)


def sample(logits: Tensor, sampling: Sampling, position: int) -> int:
    """The token for `position`, from its logits.

    logits: [V] f32 on the CPU, with -inf for tokens that must not come. Greedy ties go to the lower id.
    Raises RequestError when the logits hold NaN or +inf, or forbid every token.
    """
    if sampling.temperature == 0.0:
        token = draw(logits, 0.0, 0)
    elif sampling.seed is None:
        raise RequestError("sampling needs a seed here; use Sampling.seeded()")
    else:
        left = logits
        if sampling.filters and bool(torch.isfinite(logits.max())):
            left = torch.where(distribution(logits, sampling) > 0.0, logits, -torch.inf)
        token = draw(left, max(sampling.temperature, _COLDEST), mix(sampling.seed, position))
    if token < 0:
        raise RequestError(
            f"the logits at position {position} have maximum {logits.max().item()}; "
            "the model computed no answer"
        )
    return token


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """The probabilities that `sample` draws from.  [..., V] f32 -> same.

    Temperature first, then min_p, top_k and top_p as in vLLM, each on what the one before it left,
    renormalised.
    At temperature 0: all mass on the most likely token.
    """
    if sampling.temperature == 0.0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    # The maximum goes first: a tiny temperature would make it infinite, and infinity minus itself is NaN.
    distances = logits.float() - logits.amax(dim=-1, keepdim=True)
    probabilities = torch.softmax(distances / max(sampling.temperature, _COLDEST), dim=-1)
    few = 0 < sampling.top_k < logits.shape[-1]
    if sampling.min_p > 0.0:
        floor = sampling.min_p * probabilities.amax(dim=-1, keepdim=True)
        probabilities = torch.where(probabilities >= floor, probabilities, 0.0)
    if few:
        probabilities = keep_top_k(probabilities, sampling.top_k)
    if sampling.top_p < 1.0:
        if few or sampling.min_p > 0.0:
            probabilities = probabilities / _total(probabilities)
        probabilities = keep_top_p(probabilities, sampling.top_p)
    return probabilities / _total(probabilities)


def _total(probabilities: Tensor) -> Tensor:
    """Their sum.  [..., V] -> [..., 1].  In pieces: torch shares a longer sum among its threads, and another
    number of threads would then round it otherwise."""
    pieces = [piece.sum(dim=-1, keepdim=True) for piece in probabilities.split(_PIECE, dim=-1)]
    return torch.stack(pieces).sum(dim=0)


def keep_top_k(probabilities: Tensor, k: int) -> Tensor:
    """All but the k largest set to 0; ties go to the lower id.  [..., V] -> same, not renormalised."""
    if probabilities.dim() > 1:
        return torch.stack([keep_top_k(row, k) for row in probabilities])
    kept, order = _ranked(probabilities, min(k, len(probabilities)))
    return torch.zeros_like(probabilities).scatter_(-1, order[:k], kept[:k])


def keep_top_p(probabilities: Tensor, p: float) -> Tensor:
    """The smallest set of most likely tokens whose sum reaches p, others 0; never empty.

    [..., V] that sums to 1 -> same, not renormalised.
    """
    if probabilities.dim() > 1:
        return torch.stack([keep_top_p(row, p) for row in probabilities])
    ordered, order = _most_likely(probabilities, p)
    # A token stays when what comes before it has not reached p; float64, since 10^5 float32 terms drift.
    before = torch.nn.functional.pad(ordered.double().cumsum(dim=-1)[:-1], (1, 0))
    kept = torch.where(before < p, ordered, 0.0)
    return torch.zeros_like(probabilities).scatter_(-1, order, kept)


def _most_likely(probabilities: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The first of all tokens in descending order, the lower id of equals first, and their ids; enough of
    them for their sum to reach p.  [V] -> [n] twice."""
    size = _NUCLEUS
    # Sorting the whole vocabulary costs more than a small model's pass: few tokens hold nearly all mass.
    while size < len(probabilities):
        ordered, order = _ranked(probabilities, size)
        if float(ordered.double().cumsum(dim=-1)[-1]) >= p:
            return ordered, order
        size *= 8
    ordered, order = probabilities.sort(descending=True, stable=True)
    return ordered, order


def _ranked(probabilities: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The first `size` tokens in descending order, with all equals of the last, the lower id of equals first,
    and their ids.  [V] -> [size or more] twice."""
    floor = probabilities.topk(size).values[-1]
    ids = (probabilities >= floor).nonzero().squeeze(-1)
    ordered, order = probabilities[ids].sort(descending=True, stable=True)
    return ordered, ids[order]


def mix(seed: int, position: int) -> int:
    """64 well-mixed bits of the two numbers: near seeds and positions share nothing (splitmix64)."""
    x = (seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _in(value: object, low: float, high: float) -> bool:
    """False too for NaN and for what is no number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _check(name: str, value: object, ok: bool, allowed: str) -> None:
    if not ok:
        raise RequestError(f"{name} is {value!r}; allowed: {allowed}")
