"""How sure a figure is: 95 % intervals by resampling the records.

Every figure here is a ratio of two sums over records (hits over records, nats over tokens), so one bootstrap
serves all of them, and a comparison resamples the same records for both models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
AT_ONCE = 1 << 22
"""Indices drawn at once."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """above, below: float64 [N], one entry a record; the figure is sum(above) / sum(below)."""

    above: np.ndarray
    below: np.ndarray

    @property
    def value(self) -> float:
        return float(self.above.sum() / self.below.sum())

    def resampled(self) -> np.ndarray:
        """The figure of RESAMPLES draws of N records with replacement: the same draws for equal N."""
        generator, count = np.random.default_rng(0), len(self.above)
        rows = max(1, AT_ONCE // count)
        values: list[np.ndarray] = []
        for begin in range(0, RESAMPLES, rows):
            drawn = generator.integers(0, count, size=(min(rows, RESAMPLES - begin), count))
            values.append(self.above[drawn].sum(1) / self.below[drawn].sum(1))
        return np.concatenate(values)


def interval(ratio: Ratio) -> tuple[float, float]:
    """The 95 % interval of a figure."""
    return _middle(ratio.resampled())


def difference(ours: Ratio, theirs: Ratio) -> tuple[float, float, float]:
    """ours - theirs on the same records, and the 95 % interval of that."""
    gaps = ours.resampled() - theirs.resampled()
    return (ours.value - theirs.value, *_middle(gaps))


def _middle(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
