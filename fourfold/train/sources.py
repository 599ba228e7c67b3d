"""Records from where they lie, one after the other, never a whole file: JSONL, text, Parquet, datasets.

A record that training cannot read is an error that names file and line (Parquet and datasets: row), before
the first step; nothing is skipped.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from fourfold.errors import TrainError
from fourfold.train.config import FileSection

HUB = "hf:"
"""Begins the path of a dataset that `datasets` finds, by name or in a folder."""
COLUMNS = ("text", "prompt", "response", "messages", "tools", "kind")
"""What training reads of a table."""
ROWS = 256
"""Rows of a table that are in memory at once."""
Found = tuple[int, Any]
"""Line or row, from 1, and what stands there."""


def read_records(section: FileSection) -> Iterator[dict[str, Any]]:
    """The records of one source, checked.  Raises TrainError naming file and line or row."""
    unit, read = _reader(section)
    for number, record in read(section):
        if not _usable(record):
            raise TrainError(
                f'{section.path}, {unit} {number}: needs "text", or "prompt" and "response", as strings, or '
                '"messages", a list of objects'
            )
        if not section.kinds or record.get("kind") in section.kinds:
            yield record


def _reader(section: FileSection) -> tuple[str, Callable[[FileSection], Iterator[Found]]]:
    """What places in the source are called, and who reads it."""
    if section.path.startswith(HUB):
        return "row", _hub
    path = Path(section.path)
    if not path.is_file():
        raise TrainError(f"no such data file: {path}")
    if path.suffix == ".txt":
        return "block", _text
    if path.name.endswith((".jsonl", ".jsonl.xz")):
        return "line", _lines
    if path.suffix == ".parquet":
        return "row", _parquet
    raise TrainError(f"{path}: data files are .jsonl, .jsonl.xz, .txt or .parquet, or {HUB}NAME")


def _text(section: FileSection) -> Iterator[Found]:
    with open(section.path, encoding="utf-8") as lines:
        blocks = (part for empty, part in groupby(lines, lambda line: line == "\n") if not empty)
        texts = ("".join(block).strip() for block in blocks)
        yield from enumerate(({"text": text} for text in texts if text), 1)


def _lines(section: FileSection) -> Iterator[Found]:
    opener = lzma.open if section.path.endswith(".xz") else open
    with opener(section.path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise TrainError(f"{section.path}, line {number}: not JSON ({error.msg})") from error


def _parquet(section: FileSection) -> Iterator[Found]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise _lacking("pyarrow", section, error) from error
    try:
        with parquet.ParquetFile(section.path) as file:
            columns = [name for name in COLUMNS if name in file.schema_arrow.names]
            batches = file.iter_batches(batch_size=ROWS, columns=columns)
            yield from enumerate((_present(row) for batch in batches for row in batch.to_pylist()), 1)
    except ArrowException as error:
        raise TrainError(f"{section.path} is not a Parquet file that pyarrow reads: {error}") from error


def _hub(section: FileSection) -> Iterator[Found]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise _lacking("datasets", section, error) from error
    name = section.path.removeprefix(HUB)
    try:
        rows = load_dataset(name, section.subset or None, split=section.split, streaming=True)
    except (OSError, ValueError) as error:
        raise TrainError(f"{section.path}, split {section.split!r}: {error}") from error
    yield from enumerate((_present(row) for row in rows), 1)


def _lacking(package: str, section: FileSection, error: ImportError) -> TrainError:
    return TrainError(f"{section.path} needs {package} ({error}); pip install 'fourfold[data]'")


def _present(value: Any) -> Any:
    """Without the empty cells that a table has where a record of JSON has no key."""
    if isinstance(value, dict):
        return {key: _present(cell) for key, cell in value.items() if cell is not None}
    return [_present(cell) for cell in value] if isinstance(value, list) else value


def _usable(record: Any) -> bool:
    if not isinstance(record, dict):
        return False
    if isinstance(messages := record.get("messages"), list):
        return bool(messages) and all(isinstance(message, dict) for message in messages)
    texts = [record.get(key) for key in (("text",) if "text" in record else ("prompt", "response"))]
    return all(isinstance(text, str) and text for text in texts)
