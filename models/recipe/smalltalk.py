"""All tidy exchanges of the chitchat-dataset package (MIT), as records of kind "smalltalk" for a first stage.

    python models/recipe/smalltalk.py --tokenizer DIR --out models/corpus/smalltalk.jsonl.xz

`build_corpus.py` takes only first turns in the teacher's words; here every exchange that passes
`chitchat.turn`
counts, so much of it refers to what was said before: good for grammar, not for answers.
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

from chitchat import turn

from fourfold.tokenizer import Tokenizer

TOKENS_A_WORD = 1.5


def exchanges() -> Iterator[tuple[str, str]]:
    """(what one says, what the other answers) from whole conversations."""
    from chitchat_dataset import Dataset

    for conversation in Dataset().values():
        for said, answered in pairwise(turn(messages) for messages in conversation["messages"]):
            if said and answered:
                yield said, answered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = Tokenizer(args.tokenizer)
    count = tokens = 0
    with lzma.open(args.out, "wt", encoding="utf-8") as file:
        for said, answered in dict.fromkeys(exchanges()):
            length = len(tokenizer.encode(said)) + len(tokenizer.encode(answered))
            if length > TOKENS_A_WORD * len(f"{said} {answered}".split()):
                continue
            record = {"kind": "smalltalk", "source": "chitchat", "prompt": said, "response": answered}
            file.write(json.dumps(record) + "\n")
            count, tokens = count + 1, tokens + length + 5
    print(f"{count:,} exchanges, {tokens:,} tokens", file=sys.stderr)


if __name__ == "__main__":
    main()
