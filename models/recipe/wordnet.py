"""Examples and definitions of WordNet 3.0 in plain words: records of kind "sentence" and "definition".

    python models/recipe/wordnet.py --dict DIR --tokenizer DIR --out models/corpus/sentences.jsonl.xz
        --corpus models/corpus/train.jsonl.xz models/corpus/smalltalk.jsonl.xz

DIR holds WordNet's data.{verb,noun,adj,adv} files (Debian: package wordnet-base, /usr/share/wordnet). WordNet
is free to use, copy, modify and distribute with its copyright notice: WordNet 3.0 Copyright 2006 by Princeton
University. All rights reserved.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import sys
from collections import Counter
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


def definitions(folder: Path, common: set[str]) -> Iterator[tuple[str, str]]:
    """(question, answer) for the first sense of common nouns, verbs and adjectives."""
    for part in ("noun", "verb", "adj"):
        glosses = {
            line[:8]: line.split("| ", 1)[1]
            for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines()
            if not line.startswith("  ")
        }
        for line in (folder / f"index.{part}").read_text(encoding="utf-8").splitlines():
            fields = line.split()
            if line.startswith("  ") or fields[0] not in common:
                continue
            senses = int(fields[2])
            gloss = re.sub(r"\([^)]*\)", " ", glosses[fields[-senses]].split(";")[0].split(":")[0])
            gloss = " ".join(gloss.split())
            if not PLAIN.fullmatch(gloss) or not 3 <= len(gloss.split()) <= 14 or UNWANTED.search(gloss):
                continue
            yield define(fields[0], part, gloss)


def define(word: str, part: str, gloss: str) -> tuple[str, str]:
    """A question for a word, and its gloss as an answer."""
    if part == "verb":
        return f"What does it mean to {word}?", f"To {word} means to {gloss}."
    if part == "noun" and gloss.startswith(("a ", "an ")):
        named = f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
        return f"What is {named}?", f"{named[0].upper()}{named[1:]} is {gloss}."
    return f'What does "{word}" mean?', f"{word.capitalize()} means {gloss}."


def common_words(corpus: list[Path], least: int = 3) -> set[str]:
    """Words that occur at least so often in the other files of the corpus."""
    counts: Counter[str] = Counter()
    for path in corpus:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                counts.update(re.findall(r"[a-z]{3,}", (record.get("text") or record["response"]).lower()))
    return {word for word, count in counts.items() if count >= least}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dict", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, nargs="*", default=[], help="define the words common here")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = Tokenizer(args.tokenizer)
    kept = dict.fromkeys(s for s in map(sentence, examples(args.dict)) if s)
    plain = [s for s in kept if len(tokenizer.encode(s)) <= TOKENS_A_WORD * (len(s.split()) + 1)]
    defined = [
        (question, answer)
        for question, answer in definitions(args.dict, common_words(args.corpus))
        if len(tokenizer.encode(answer)) <= TOKENS_A_WORD * (len(answer.split()) + 1)
    ]
    rows = [{"kind": "sentence", "source": "wordnet", "text": text} for text in plain]
    rows += [{"kind": "definition", "source": "wordnet", "prompt": q, "response": a} for q, a in defined]
    with lzma.open(args.out, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print(
        f"{len(plain):,} sentences of {len(kept):,} plain ones, {len(defined):,} definitions", file=sys.stderr
    )


if __name__ == "__main__":
    main()
