"""The data set: what the filters keep, as conversations with their provenance, and a card that tells all."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourfold.distil.config import DistilConfig
from fourfold.distil.filters import Filter

DATA, CARD = "data.jsonl", "README.md"
PROVENANCE = ("teacher", "terms", "time", "temperature", "top_p", "seed", "input_tokens", "output_tokens")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """path: the .jsonl.  kept: records.  dropped: how many for which reason.  tokens: the teacher's count."""

    path: Path
    kept: int
    dropped: Mapping[str, int]
    tokens: int


def write_dataset(
    config: DistilConfig, answers: Sequence[Mapping[str, Any]], marks: Mapping[str, int] | None = None
) -> DataSet:
    """Filter `answers` (records of answers.jsonl), write DIR/data.jsonl and its card.

    marks: the judge's number for each key, where there is a judge.
    """
    folder = Path(config.dir)
    keeping, dropped = Filter(config.filters), Counter[str]()
    kept: list[dict[str, Any]] = []
    # By key, so that the order in which a busy teacher answered changes nothing.
    for answer in sorted(answers, key=lambda answer: str(answer["key"])):
        reason = keeping.reason(answer["content"], answer["finish"])
        if reason is None and marks is not None and marks.get(answer["key"], 0) < config.filters.judge_least:
            reason = "judge"
        if reason is None:
            kept.append(_record(answer, thinking=config.sampling.thinking == "keep"))
        else:
            dropped[reason] += 1
    result = DataSet(
        path=folder / DATA,
        kept=len(kept),
        dropped=dict(dropped.most_common()),
        tokens=sum(record["output_tokens"] for record in kept),
    )
    _write(result.path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
    _write(folder / CARD, card(config, answers, result))
    return result


def _record(answer: Mapping[str, Any], *, thinking: bool) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant", "content": answer["content"]}
    if thinking and answer["reasoning"]:
        said["reasoning_content"] = answer["reasoning"]
    return {"messages": [*answer["messages"], said], **{name: answer[name] for name in PROVENANCE}}


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def card(config: DistilConfig, answers: Sequence[Mapping[str, Any]], data: DataSet) -> str:
    """The card, Markdown."""
    teacher, filters = config.teacher, config.filters
    times = sorted(str(answer["time"]) for answer in answers)
    cost = sum(float(answer["cost"]) for answer in answers)
    rows = {
        "teacher": f"{teacher.model} at {teacher.url}",
        "its terms, as whoever made this wrote them down and accepted": teacher.terms,
        "asked": f"{len(answers):,} questions" + (f", {times[0]} to {times[-1]}" if times else ""),
        "cost by the teacher's prices": f"{cost:.4f}",
        "temperatures": ", ".join(f"{t:g}" for t in config.sampling.temperatures),
        "top_p": f"{config.sampling.top_p:g}",
        "longest answer": f"{config.sampling.max_tokens:,} tokens",
        "reasoning": config.sampling.thinking,
        "filter: characters": f"{filters.min_chars} to {filters.max_chars or 'any number'}",
        "filter: patterns of refusals": str(len(filters.refusals)),
        "filter: script": filters.script or "any",
        "filter: repeated groups of 4 words": f"at most {filters.repeated:.0%}",
        "filter: groups of 3 words in common with an earlier answer": f"below {filters.near_duplicate:.0%}",
        "filter: judge": f"at least {filters.judge_least} of 10" if filters.judge else "none",
    }
    lines = [
        f"# A data set distilled from {teacher.model}",
        "",
        f"{data.kept:,} conversations, {data.tokens:,} tokens of answers by the teacher's count, in "
        f"`{data.path.name}`: one JSON object a line with `messages` as in Chat Completions and the "
        "provenance of "
        "each answer.",
        "",
        *_table("", "", rows),
        "",
        "Not kept, by the first reason that applied:",
        "",
        *_table("reason", "answers", {reason: f"{count:,}" for reason, count in data.dropped.items()}),
    ]
    return "\n".join(lines) + "\n"


def _table(left: str, right: str, rows: Mapping[str, str]) -> list[str]:
    return [f"| {left} | {right} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
