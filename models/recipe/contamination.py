"""Runs of words that a text shares with the evaluation sets: such a text must not be learnt from."""

from __future__ import annotations

import re
from pathlib import Path

import records

WORDS = 8
Run = tuple[str, ...]


def runs(text: str) -> set[Run]:
    """All runs of WORDS words, lower case, without punctuation."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


def evaluation_runs(folder: Path) -> set[Run]:
    """The runs of every minimal pair, and of every cloze item with each of its choices."""
    found: set[Run] = set()
    for pair in records.read(folder / "minimal_pairs.jsonl"):
        found |= runs(pair["good"]) | runs(pair["bad"])
    for item in records.read(folder / "cloze.jsonl"):
        for choice in item["choices"]:
            found |= runs(f"{item['context']} {choice}")
    return found
