"""Corpus records: reading, writing, and the token ids that a record stands for.

A record is {"kind", "source", "prompt", "response"} or, without a prompt, {"kind", "source",
"text"}; files are JSON lines, compressed with xz when the name ends in .xz.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT, THINK_END = "<｜User｜>", "<｜Assistant｜>", "</think>"
Record = dict[str, Any]


def read(path: Path) -> Iterator[Record]:
    """The records of a .jsonl or .jsonl.xz file."""
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def write(path: Path, records: Iterable[Record]) -> None:
    """Write records, one line each; the same records give the same bytes."""
    text = "".join(json.dumps(r, ensure_ascii=False, sort_keys=True) + "\n" for r in records)
    data = text.encode()
    path.write_bytes(lzma.compress(data, preset=9) if path.suffix == ".xz" else data)


def key(record: Record) -> str:
    """What decides the side of the split: records with the same key stay together."""
    return str(record.get("prompt") or record["text"])


def answer_ids(record: Record, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """Token ids of a record, and how many of them come before the first answer token.

    `<bos><｜User｜>prompt<｜Assistant｜></think>response<eos>`, or `<bos>text<eos>`. A special
    token that is spelled inside a text would be parsed as one; the corpus holds none.
    """

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    if "text" in record:
        head, body = encode(BOS), record["text"]
    else:
        head = encode(f"{BOS}{USER}{record['prompt']}{ASSISTANT}{THINK_END}")
        body = record["response"]
    return [*head, *encode(body), *encode(EOS)], len(head)
