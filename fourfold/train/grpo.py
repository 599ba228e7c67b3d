"""Group relative policy optimisation: what a token of an answer costs, from what the answer earned.

An answer's advantage is how much more it earned than the others to its prompt, in their standard deviations:
A_i = (r_i - mean r) / std r; no model of values is needed.  Cost of a token, with p = pi(token) /
pi_old(token): -min(p A, clip(p, 1 - eps, 1 + eps) A), averaged over the tokens of an answer and then over
answers. DeepSeekMath (Shao et al. 2024), section 4.1; DeepSeek-R1.  KL to the reference is the exact one
(on_policy.py), where the paper estimates it from the token that was drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_STD = 1e-6


def advantages(rewards: Tensor) -> Tensor:
    """rewards [prompts, answers] f32 -> same: 0 where all answers to a prompt earned the same."""
    gap = rewards - rewards.mean(-1, keepdim=True)
    std = gap.square().mean(-1, keepdim=True).sqrt()
    return torch.where(std > SMALLEST_STD, gap / std.clamp_min(SMALLEST_STD), 0.0)


def policy_cost(logp: Tensor, old: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Cost of each token, and whether clipping took its gradient (0 or 1).

    logp, old: log pi and log pi_old of the tokens; advantage: as above, with any positive factor.  All [N]
    f32.
    """
    ratio = (logp - old).exp()
    plain, clipped = ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage
    return -torch.minimum(plain, clipped), (clipped < plain).float()
