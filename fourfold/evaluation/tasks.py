"""Tasks in local files, one JSON object a line; what an object holds tells what is measured.

{"text"}, or {"prompt", "response"}: perplexity of the text, or of the response.
{"context", "choices": [...], "answer": index}: whether the right choice is the likeliest.
{"good", "bad"}: whether the good text is likelier than the bad one.
{"prompt", "expected": text or [texts]}: whether the greedy answer is one of these, exactly.
Other keys ("source", "kind", ...) are kept for nobody.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fourfold.errors import RequestError

Kind = Literal["perplexity", "choice", "pairs", "exact"]
SUFFIXES = (".jsonl", ".jsonl.xz")
MOST_CHOICES = 1024


@dataclass(frozen=True, kw_only=True)
class Task:
    """name: of its file.  records: as in the file, checked."""

    name: str
    kind: Kind
    records: list[dict[str, Any]]


def read_task(path: Path, limit: int | None = None) -> Task:
    """The task of one file, its first `limit` records.  RequestError names the file, the line and what is
    wrong."""
    records: list[dict[str, Any]] = []
    kinds = set()
    for number, record in _lines(path):
        where = f"{path}, line {number}"
        kinds.add(_kind(record, where))
        if len(kinds) > 1:
            raise RequestError(
                f"{where} is for {' and '.join(sorted(kinds))}; give each kind a file of its own"
            )
        records.append(record)
        if len(records) == limit:
            break
    if not records:
        raise RequestError(f"{path} has no records; give a file with one JSON object a line")
    name = path.name
    for suffix in reversed(SUFFIXES):
        name = name.removesuffix(suffix)
    return Task(name=name, kind=kinds.pop(), records=records)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.name.endswith(SUFFIXES):
        raise RequestError(f"task {path}: allowed: {' and '.join(SUFFIXES)} files")
    opener = lzma.open if path.suffix == ".xz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise RequestError(f"{path}, line {number} is not JSON ({error})") from error
                if not isinstance(record, dict):
                    raise RequestError(f"{path}, line {number} is no JSON object")
                yield number, record
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read the task {path}: {error}") from error


def _kind(record: dict[str, Any], where: str) -> Kind:
    def texts(*names: str) -> bool:
        return all(isinstance(record.get(name), str) and record[name] for name in names)

    if "choices" in record and texts("context") and _choices(record):
        return "choice"
    if texts("good", "bad"):
        return "pairs"
    if "expected" in record and texts("prompt") and _expected(record):
        return "exact"
    if texts("text") or texts("prompt", "response"):
        return "perplexity"
    raise RequestError(
        f"{where} has the keys {', '.join(record)}, or values of other types; allowed: text; prompt and "
        "response; context, choices and answer (an index); good and bad; prompt and expected"
    )


def _choices(record: dict[str, Any]) -> bool:
    choices, answer = record["choices"], record.get("answer")
    good = isinstance(choices, list) and 2 <= len(choices) <= MOST_CHOICES
    good = good and all(isinstance(choice, str) and choice for choice in choices)
    return good and isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices)


def _expected(record: dict[str, Any]) -> bool:
    expected = record["expected"]
    several = isinstance(expected, list) and expected and all(isinstance(e, str) for e in expected)
    return bool(several) or isinstance(expected, str)
