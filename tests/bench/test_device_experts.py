"""bench/device_experts.py on two documents of the shipped model's corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fourfold
from bench.conversion import held_out
from bench.device_experts import opened, shares, uses

HELD_OUT = Path(__file__).parents[2] / "models" / "corpus" / "heldout.jsonl.xz"


def test_counts_place_what_a_text_uses():
    folder = fourfold.shipped_model()
    samples = held_out(folder, HELD_OUT, 2)
    model, tiers = opened(folder)
    counted = uses(model, tiers, samples)
    tokens = sum(len(sample.ids) for sample in samples)
    assert counted.sum(1).tolist() == [2 * tokens] * 6 + [0]  # nothing is guessed by the MTP block
    rows = shares(model, tiers, {"none": (np.zeros_like(counted), counted), "own": (counted, counted)})
    tiers.close()
    assert len(rows["own"]) == 7 and rows["own"] == sorted(rows["own"])
    assert all(own >= none for own, none in zip(rows["own"], rows["none"], strict=True))
