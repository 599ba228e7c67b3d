"""Example sentences of WordNet 3.0 in plain words, as records of kind "sentence".

    python models/recipe/wordnet.py --dict DIR --tokenizer DIR --out models/corpus/sentences.jsonl.xz

DIR holds WordNet's data.{verb,noun,adj,adv} files (Debian: package wordnet-base, /usr/share/wordnet).
WordNet is
free to use, copy, modify and distribute with its copyright notice: WordNet 3.0 Copyright 2006 by Princeton
University. All rights reserved.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from chitchat import UNWANTED

from fourfold.tokenizer import Tokenizer

MIN_WORDS, MAX_WORDS = 4, 16
TOKENS_A_WORD = 1.6  # more means rare words: the tokenizer's vocabulary is that of simple stories
QUOTED = re.compile(r'"([^"]+)"(?!\s*-+\s*[A-Z])')  # not followed by an author's name
PLAIN = re.compile(r"[A-Za-z0-9 ,.!?'\-]+")
SUBJECT = re.compile(
    r"^(?:he|she|it|they|we|i|you|the|his|her|my|their|our|this|that|these|there|don't|please)\b", re.I
)
HARSH = re.compile(
    r"\b(?:nazi\w*|hitler|slave\w*|jew\w*|muslim\w*|prostitut\w*|virgin\w*|breast\w*|execut\w*|corpse\w*)\b",
    re.I,
)


def examples(folder: Path) -> Iterator[str]:
    """The quoted examples of all glosses, as they stand."""
    for part in ("verb", "noun", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if not line.startswith("  ") and "|" in line:
                for text in QUOTED.findall(line.split("|", 1)[1]):
                    # Nouns and adjectives are mostly shown in phrases, not sentences.
                    if part == "verb" or SUBJECT.match(text):
                        yield text


def sentence(text: str) -> str | None:
    """The example as a sentence with capital and full stop, or None if it is not plain."""
    text = re.sub(r"\s+", " ", text.strip(" ;"))
    if not PLAIN.fullmatch(text) or not MIN_WORDS <= len(text.split()) <= MAX_WORDS:
        return None
    if UNWANTED.search(text) or HARSH.search(text) or not text[0].isalpha():
        return None
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dict", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = Tokenizer(args.tokenizer)
    kept = dict.fromkeys(s for s in map(sentence, examples(args.dict)) if s)
    plain = [s for s in kept if len(tokenizer.encode(s)) <= TOKENS_A_WORD * (len(s.split()) + 1)]
    with lzma.open(args.out, "wt", encoding="utf-8") as file:
        for text in plain:
            file.write(json.dumps({"kind": "sentence", "source": "wordnet", "text": text}) + "\n")
    tokens = sum(len(tokenizer.encode(s)) + 2 for s in plain)
    print(f"{len(plain):,} sentences of {len(kept):,} plain ones, {tokens:,} tokens", file=sys.stderr)


if __name__ == "__main__":
    main()
