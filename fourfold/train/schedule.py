"""The learning rate over a run.  The budget may be steps or seconds: both become a share between 0 and 1."""

from __future__ import annotations

import math

from fourfold.train.config import ScheduleSection


def rate(schedule: ScheduleSection, share: float) -> float:
    """Factor on the peak rate when `share` of the budget is used up; rises from 0 over the warm-up, then

    cosine: final + (1 - final) * (1 + cos(pi * p)) / 2 over the part after the warm-up;
    wsd: 1 until 1 - decay, then linearly down to final;  constant: 1.
    """
    share = min(max(share, 0.0), 1.0)
    if share < schedule.warmup:
        return share / schedule.warmup
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "wsd":
        left = (1.0 - share) / schedule.decay if schedule.decay > 0 else 1.0
        return schedule.final + (1.0 - schedule.final) * min(left, 1.0)
    part = (share - schedule.warmup) / max(1.0 - schedule.warmup, 1e-9)
    return schedule.final + (1.0 - schedule.final) * 0.5 * (1.0 + math.cos(math.pi * part))
