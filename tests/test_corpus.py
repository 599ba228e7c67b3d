"""The committed corpus and the evaluation sets have nothing in common that could be learnt by heart.

The runs are found here with code of their own: the recipe that filters them is what is tested.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import pytest

MODELS = Path(__file__).parent.parent / "models"
LEARNT_FROM = ("train", "sentences", "smalltalk")


def eights(text: str) -> Iterator[str]:
    """Eight words in a row, as one string, letters and digits only."""
    kept = "".join(c if c.isalnum() or c == "'" else " " for c in text.lower()).split()
    for i in range(len(kept) - 7):
        yield " ".join(kept[i : i + 8])


@pytest.fixture(scope="module")
def evaluated() -> set[str]:
    found: set[str] = set()
    for name in ("minimal_pairs", "cloze"):
        for line in (MODELS / "eval" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            if name == "cloze":
                texts = [f"{item['context']} {choice}" for choice in item["choices"]]
            else:
                texts = [item["good"], item["bad"]]
            found.update(run for text in texts for run in eights(text))
    assert len(found) > 400
    return found


@pytest.mark.parametrize("name", LEARNT_FROM)
def test_no_eight_words_of_the_evaluation_are_learnt_from(name: str, evaluated: set[str]) -> None:
    with lzma.open(MODELS / "corpus" / f"{name}.jsonl.xz", "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            for text in (record.get(key, "") for key in ("text", "prompt", "response")):
                assert not [run for run in eights(text) if run in evaluated], record
