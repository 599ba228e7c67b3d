"""All that is tidy in the chitchat-dataset package (MIT): exchanges and single utterances, for a first stage.

    python models/recipe/smalltalk.py --tokenizer DIR --out models/corpus/smalltalk.jsonl.xz

Records of kind "smalltalk" and "utterance". `build_corpus.py` takes only first turns in the teacher's words;
here every exchange that passes `chitchat.turn` counts, so much of it refers to what was said before: good for
grammar, not for answers.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from chitchat import tidy, turn

from fourfold.tokenizer import Tokenizer

TOKENS_A_WORD = 1.5
UTTERANCE_TOKENS_A_WORD, UTTERANCE_WORDS = (
    1.4,
    5,
)  # single ones are plentiful: the plainest that say something


def exchanges() -> Iterator[tuple[str, str]]:
    """(what one says, what the other answers) from whole conversations."""
    from chitchat_dataset import Dataset

    for conversation in Dataset().values():
        for said, answered in pairwise(turn(messages) for messages in conversation["messages"]):
            if said and answered:
                yield said, answered


def utterances(exchanged: set[str]) -> Iterator[str]:
    """Tidy utterances that are in none of the exchanges."""
    from chitchat_dataset import Dataset

    for conversation in Dataset().values():
        for messages in conversation["messages"]:
            for message in messages:
                text = tidy(message["text"])
                if text and len(text.split()) >= UTTERANCE_WORDS and text not in exchanged:
                    yield text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = Tokenizer(args.tokenizer)

    def plain(text: str, limit: float) -> bool:
        return len(tokenizer.encode(text)) <= limit * len(text.split())

    pairs = [pair for pair in dict.fromkeys(exchanges()) if plain(" ".join(pair), TOKENS_A_WORD)]
    said = {side for pair in pairs for side in pair}
    alone = [u for u in dict.fromkeys(utterances(said)) if plain(u, UTTERANCE_TOKENS_A_WORD)]
    rows = [{"kind": "smalltalk", "source": "chitchat", "prompt": p, "response": r} for p, r in pairs]
    rows += [{"kind": "utterance", "source": "chitchat", "text": text} for text in alone]
    with lzma.open(args.out, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print(f"{len(pairs):,} exchanges, {len(alone):,} utterances", file=sys.stderr)


if __name__ == "__main__":
    main()
