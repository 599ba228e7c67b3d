"""How far two sets of logits, or of residual streams, are apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distance:
    """Of logits from the expected ones.

    typical: at the median position, the largest error over the standard deviation of all expected logits.
    kl: mean KL(expected ‖ got) in nats; kl_max: the largest. same_choice: share of positions with the same
    most likely token. max_abs, mean_abs: errors of all logits.
    """

    typical: float
    kl: float
    kl_max: float
    same_choice: float
    max_abs: float
    mean_abs: float


def distance(got: Tensor, expected: Tensor) -> Distance:
    """Compare logits [..., V]. What is not finite is infinitely far away."""
    # On the CPU: not every chip has float64.
    got, expected = (logits.detach().cpu().double().flatten(0, -2) for logits in (got, expected))
    error = (got - expected).abs()
    if not bool(torch.isfinite(error).all()):
        far = float("inf")
        return Distance(typical=far, kl=far, kl_max=far, same_choice=0.0, max_abs=far, mean_abs=far)
    kl = kl_divergence(expected, got)
    return Distance(
        typical=float(error.amax(-1).median() / expected.std()),
        kl=float(kl.mean()),
        kl_max=float(kl.max()),
        same_choice=float((got.argmax(-1) == expected.argmax(-1)).double().mean()),
        max_abs=float(error.max()),
        mean_abs=float(error.mean()),
    )


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) in nats for each position, from logits.  [..., V] twice -> [...] f64."""
    log_p, log_q = (logits.double().log_softmax(-1) for logits in (p, q))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def drift(got: Sequence[Tensor], expected: Sequence[Tensor], kinds: Sequence[str]) -> dict[str, float]:
    """Layer kind -> rms error of the streams over their rms, at the median position of its worst block.

    got, expected: streams [B, T, n, D] after each block, and the kind of each block.
    """
    worst: dict[str, float] = defaultdict(float)
    for kind, *streams in zip(kinds, got, expected, strict=True):
        a, b = (x.detach().cpu().float() for x in streams)
        error, size = ((x.square().mean((-2, -1)).sqrt()) for x in (a - b, b))
        value = float((error / size).median())
        worst[kind] = max(worst[kind], value if value == value else float("inf"))
    return dict(worst)
