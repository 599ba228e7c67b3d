"""Asking all questions: several at a time, no faster and no dearer than allowed, each answered once and kept.

DIR/answers.jsonl gets a line an answer, written whole and flushed, so that a run that is killed loses only
what was under way, and the next one asks only what is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from fourfold.distil.client import Client, Refused, Reply
from fourfold.distil.config import DistilConfig
from fourfold.distil.prompts import Question
from fourfold.errors import TrainError

ANSWERS = "answers.jsonl"
REFUSED_IN_A_ROW = 20
"""So many refusals and no answer mean that something is wrong with all questions."""


@dataclass(kw_only=True)
class Tally:
    """How far a collection is.  cost: of all answers in the folder."""

    questions: int
    answered: int
    refused: int = 0
    cost: float = 0.0
    capped: bool = False


def read_answers(folder: Path) -> list[dict[str, Any]]:
    """The records of answers.jsonl.  A last line that was cut off is no record."""
    path = folder / ANSWERS
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def collect(
    config: DistilConfig, questions: Sequence[Question], client: Client, progress: Callable[[Tally], None]
) -> Tally:
    """Ask what is not answered yet.  progress: called after each answer.

    TrainError: the teacher's terms are not accepted, or it cannot be asked; what was answered is kept.
    """
    if not config.teacher.accepted:
        raise TrainError(
            f"the terms of {config.teacher.model} ({config.teacher.terms}) are not accepted; read them, and "
            "if you may train on its answers, set teacher.accepted = true"
        )
    return asyncio.run(_Collection(config, client, progress).run(questions))


class _Collection:
    def __init__(self, config: DistilConfig, client: Client, progress: Callable[[Tally], None]) -> None:
        self.config, self.client, self.progress = config, client, progress
        self.folder = Path(config.dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.under_way = 0.0  # what the open questions can cost at most
        self.begun_at = 0.0
        self.refused_in_a_row = 0

    async def run(self, questions: Sequence[Question]) -> Tally:
        known = {record["key"]: record for record in read_answers(self.folder)}
        left = [(key, q) for q in questions if (key := q.key(self._name)) not in known]
        left = list(dict(left).items())  # equal questions are one
        different = {q.key(self._name) for q in questions}
        self.tally = Tally(
            questions=len(different),
            answered=len(different) - len(left),
            cost=sum(record["cost"] for record in known.values()),
        )
        waiting = iter(left)
        with _whole_lines(self.folder / ANSWERS) as file:
            workers = [
                self._work(waiting, file) for _ in range(min(self.config.budget.concurrency, len(left)))
            ]
            try:
                async with asyncio.TaskGroup() as group:
                    for worker in workers:
                        group.create_task(worker)
            except* TrainError as problems:
                raise problems.exceptions[0] from None
            finally:
                await self.client.close()
        return self.tally

    @property
    def _name(self) -> str:
        return f"{self.config.teacher.url} {self.config.teacher.model}"

    async def _work(self, waiting: Any, file: TextIO) -> None:
        for key, question in waiting:
            most = self._cost(sum(len(m["content"].encode()) for m in question.messages), question.max_tokens)
            limit = self.config.budget.cost
            if limit and self.tally.cost + self.under_way + most > limit:
                self.tally.capped = True
                return
            self.under_way += most
            try:
                await self._pace()
                reply = await self.client.ask(question)
                self._keep(file, key, question, reply)
            except Refused as problem:
                self._note_refusal(problem)
            finally:
                self.under_way -= most
            self.progress(self.tally)

    def _note_refusal(self, problem: Refused) -> None:
        self.tally.refused += 1
        self.refused_in_a_row += 1
        if self.refused_in_a_row >= REFUSED_IN_A_ROW:
            raise TrainError(
                f"the teacher refused {self.refused_in_a_row} questions in a row, the last with {problem}"
            )

    async def _pace(self) -> None:
        """Wait until the next question may begin."""
        if rate := self.config.budget.per_minute:
            self.begun_at = max(self.begun_at + 60.0 / rate, time.monotonic())
            await asyncio.sleep(self.begun_at - time.monotonic())

    def _cost(self, input_tokens: int, output_tokens: int) -> float:
        teacher = self.config.teacher
        return (input_tokens * teacher.input_price + output_tokens * teacher.output_price) / 1e6

    def _keep(self, file: TextIO, key: str, question: Question, reply: Reply) -> None:
        cost = self._cost(reply.input_tokens, reply.output_tokens)
        record = {
            "key": key,
            "messages": list(question.messages),
            "content": reply.content,
            "reasoning": reply.reasoning,
            "finish": reply.finish,
            "teacher": {"url": self.config.teacher.url, "model": self.config.teacher.model},
            "terms": self.config.teacher.terms,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "temperature": question.temperature,
            "top_p": question.top_p,
            "max_tokens": question.max_tokens,
            "seed": question.seed,
            "input_tokens": reply.input_tokens,
            "output_tokens": reply.output_tokens,
            "cost": cost,
        }
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        file.flush()
        self.refused_in_a_row = 0
        self.tally.answered += 1
        self.tally.cost += cost


def _whole_lines(path: Path) -> TextIO:
    """`path` to append to, without half a line at its end."""
    if path.exists():
        data = path.read_bytes()
        os.truncate(path, data.rfind(b"\n") + 1)
    return path.open("a", encoding="utf-8")
