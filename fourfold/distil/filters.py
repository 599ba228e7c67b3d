"""Which answers are kept, and why the others are not."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from fourfold.distil.config import FiltersSection

LATIN_SHARE = 0.9
SHINGLE, REPEATED = 3, 4
"""Words of a group: for near duplicates, for repetition."""
BANDS, ROWS = 16, 4
"""Of the hashes that find candidates: two answers with 0.8 of their groups in common are missed 1 time in "
"5,000."""


class Filter:
    """Takes answers one after the other, as near duplicates depend on those before."""

    def __init__(self, section: FiltersSection) -> None:
        self.section = section
        self.refusals = [re.compile(pattern, re.IGNORECASE) for pattern in section.refusals]
        self.similar = Similar(section.near_duplicate)

    def reason(self, answer: str, finish: str) -> str | None:
        """Why it is not kept, or None."""
        section = self.section
        if finish != "stop":
            return "cut off" if finish == "length" else f"ended by {finish}"
        if len(answer) < max(section.min_chars, 1) or (section.max_chars and len(answer) > section.max_chars):
            return "length"
        if any(pattern.search(answer) for pattern in self.refusals):
            return "refusal"
        if section.script == "latin" and latin_share(answer) < LATIN_SHARE:
            return "script"
        if repeated_share(answer) > section.repeated:
            return "repetition"
        return "near duplicate" if self.similar.seen(answer) else None


def latin_share(text: str) -> float:
    """Share of its letters that are Latin; 1 without letters."""
    letters = [c for c in text if c.isalpha()]
    latin = sum("LATIN" in unicodedata.name(c, "") for c in letters)
    return latin / len(letters) if letters else 1.0


def repeated_share(text: str) -> float:
    """Share of its groups of 4 words that occurred in it before."""
    groups = _groups(text, REPEATED)
    return 1.0 - len(set(groups)) / len(groups) if groups else 0.0


def _groups(text: str, size: int) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return list(zip(*(words[i:] for i in range(size)), strict=False))


class Similar:
    """Finds texts that share at least `least` of all their 3-word groups (Jaccard) with an earlier one.

    Candidates come from bands of MinHash (Broder 1997) and are then compared exactly.
    """

    def __init__(self, least: float) -> None:
        self.least = least
        generator = np.random.default_rng(0)
        self.factors = generator.integers(1, 1 << 63, size=(2, BANDS * ROWS), dtype=np.uint64) | 1
        self.sets: list[frozenset[int]] = []
        self.buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)

    def seen(self, text: str) -> bool:
        """Whether such a text was there before; it is from now on."""
        groups = _groups(text, SHINGLE) or [(text,)]
        hashes = frozenset(zlib.crc32(" ".join(group).encode()) for group in groups)
        bands = self._bands(np.fromiter(hashes, dtype=np.uint64, count=len(hashes)))
        near = {i for band in bands for i in self.buckets[band]}
        if any(len(hashes & self.sets[i]) >= self.least * len(hashes | self.sets[i]) for i in near):
            return True
        for band in bands:
            self.buckets[band].append(len(self.sets))
        self.sets.append(hashes)
        return False

    def _bands(self, hashes: np.ndarray) -> Sequence[tuple[int, bytes]]:
        mixed = (hashes[:, None] * self.factors[0] + self.factors[1]) >> np.uint64(32)
        least = mixed.min(axis=0).reshape(BANDS, ROWS)
        return [(i, row.tobytes()) for i, row in enumerate(least)]
