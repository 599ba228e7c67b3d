"""The optional judge: the teacher marks each answer, and its marks are kept like answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fourfold.distil.client import Client
from fourfold.distil.collect import Tally, collect, read_answers
from fourfold.distil.config import DistilConfig
from fourfold.distil.prompts import Question

FOLDER = "judge"
MOST_TOKENS = 16


def judge(
    config: DistilConfig,
    answers: Sequence[Mapping[str, Any]],
    client: Client,
    progress: Callable[[Tally], None],
) -> dict[str, int]:
    """The mark of each answer, by its key; an answer whose mark cannot be read has none.

    The marks are in DIR/judge; the cost of both is held under the budget.  TrainError as `collect`.
    """
    folder = Path(config.dir) / FOLDER
    asked = {answer["key"]: _question(config, answer) for answer in answers}
    spent = sum(answer["cost"] for answer in answers)
    left = max(config.budget.cost - spent, 1e-9) if config.budget.cost else 0.0
    own = replace(config, dir=str(folder), budget=replace(config.budget, cost=left))
    collect(own, list(asked.values()), client, progress)
    name = f"{config.teacher.url} {config.teacher.model}"
    said = {record["key"]: record["content"] for record in read_answers(folder)}
    marks = {key: mark(said.get(question.key(name), "")) for key, question in asked.items()}
    return {key: value for key, value in marks.items() if value is not None}


def mark(text: str) -> int | None:
    """The first whole number from 1 to 10 in the judge's answer."""
    found = re.search(r"\b(10|[1-9])\b", text)
    return int(found[1]) if found else None


def _question(config: DistilConfig, answer: Mapping[str, Any]) -> Question:
    # Not str.format: the texts may hold braces.
    parts = {"{prompt}": answer["messages"][-1]["content"], "{answer}": answer["content"]}
    text = re.sub(r"\{prompt\}|\{answer\}", lambda match: parts[match[0]], config.filters.judge)
    return Question(
        messages=({"role": "user", "content": text},),
        temperature=0.0,
        top_p=1.0,
        max_tokens=MOST_TOKENS,
        seed=0,
        thinking=False,
    )
