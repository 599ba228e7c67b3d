"""bench/choosing.py: every setting and constraint has its times."""

from __future__ import annotations

import fourfold
from bench.choosing import ANSWERS, SAMPLINGS, mask_times, sampler_times


def test_every_setting_is_timed():
    times = sampler_times(300, 2)
    assert set(times) == set(SAMPLINGS) and all(value > 0 for value in times.values())


def test_every_constraint_takes_its_answer():
    found = mask_times(fourfold.tokenizer(fourfold.shipped_model()))
    for name in ANSWERS:
        assert found[name]["tokens"] > 10 and 0 < found[name]["mask"] <= found[name]["slowest"]
