"""Corpus records: reading and writing.

A record is {"kind", "source", "prompt", "response"} or, without a prompt, {"kind", "source",
"text"}; fourfold.train.corpus.Encoder turns it into token ids. Files are JSON lines, compressed
with xz when the name ends in .xz.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

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
