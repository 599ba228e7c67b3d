"""Figures of a model on a task, record by record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fourfold.engine.config import EngineConfig
from fourfold.engine.engine import Engine
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from fourfold.errors import RequestError
from fourfold.evaluation.intervals import Ratio
from fourfold.evaluation.scoring import Scored, score
from fourfold.evaluation.tasks import Kind, Task
from fourfold.model.transformer import Transformer
from fourfold.protocol import Chat, PromptFormat
from fourfold.tokenizer import Tokenizer

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """name: what was measured.  percent: it is a share.  lower: less is better."""

    name: str
    ratio: Ratio
    percent: bool
    lower: bool


class Evaluator:
    """One model under test.  max_tokens: of an answer that must match; longer ones are wrong."""

    def __init__(self, model: Transformer, prompt_format: PromptFormat, max_tokens: int) -> None:
        if model.tokenizer is None:
            raise RequestError("this model has no tokenizer; put its tokenizer.json into its folder")
        self.model = model
        self.tokenizer: Tokenizer = model.tokenizer
        self.format = prompt_format
        self.max_tokens = max_tokens

    def run(self, task: Task, progress: Progress) -> list[Figure]:
        """The figures of `task`.  progress: called with the number of texts done, of `texts(task)`."""
        by_kind: dict[Kind, Callable[[Sequence[dict[str, Any]], Progress], list[Figure]]] = {
            "perplexity": self._perplexity,
            "choice": self._choice,
            "pairs": self._pairs,
            "exact": self._exact,
        }
        return by_kind[task.kind](task.records, progress)

    def _text(self, text: str) -> list[int]:
        return [self.model.config.bos_token_id, *self.tokenizer.encode(text)]

    def _prompt(self, question: str) -> list[int]:
        chat = Chat(messages=[{"role": "user", "content": question}], format=self.format)
        return chat.prompt().encode(self.tokenizer)

    def _perplexity(self, records: Sequence[dict[str, Any]], progress: Progress) -> list[Figure]:
        end = self.model.config.eos_token_id
        texts, sizes = [], []
        for record in records:
            head = self._prompt(record["prompt"]) if "response" in record else self._text("")
            body = record["response"] if "response" in record else record["text"]
            texts.append(Scored(ids=[*head, *self.tokenizer.encode(body), end], start=len(head)))
            sizes.append(len(body.encode()))
        scores = score(self.model, texts, progress)
        nats = np.array([-s.logprob for s in scores])
        tokens, size = np.array([s.tokens for s in scores], dtype=float), np.array(sizes, dtype=float)
        return [
            _figure("nats per token", nats, tokens, lower=True),
            # Which does not depend on the tokenizer, so that models with different ones compare.
            _figure("bits per byte", nats / math.log(2), size, lower=True),
        ]

    def _choice(self, records: Sequence[dict[str, Any]], progress: Progress) -> list[Figure]:
        texts = []
        for record in records:
            head = len(self._text(record["context"]))
            for choice in record["choices"]:
                # Together, as the model would read it; a token may span the border.
                whole = self._text(record["context"] + choice)
                texts.append(Scored(ids=whole, start=min(head, len(whole) - 1)))
        scores = iter(score(self.model, texts, progress))
        hits, even = [], []
        for record in records:
            sums = [next(scores).logprob for _ in record["choices"]]
            per_byte = [s / len(c.encode()) for s, c in zip(sums, record["choices"], strict=True)]
            hits.append(int(np.argmax(sums)) == record["answer"])
            even.append(int(np.argmax(per_byte)) == record["answer"])
        return [_share("right choice", hits), _share("right choice, per byte", even)]

    def _pairs(self, records: Sequence[dict[str, Any]], progress: Progress) -> list[Figure]:
        texts = [
            Scored(ids=self._text(record[side]), start=1) for record in records for side in ("good", "bad")
        ]
        sums = [s.logprob for s in score(self.model, texts, progress)]
        hits = [good > bad for good, bad in zip(sums[::2], sums[1::2], strict=True)]
        return [_share("good one likelier", hits)]

    def _exact(self, records: Sequence[dict[str, Any]], progress: Progress) -> list[Figure]:
        answers = self._answers([self._prompt(record["prompt"]) for record in records], progress)
        hits = []
        for record, answer in zip(records, answers, strict=True):
            expected = record["expected"]
            accepted = [expected] if isinstance(expected, str) else expected
            hits.append(answer.strip() in [text.strip() for text in accepted])
        return [_share("exact answer", hits)]

    def _answers(self, prompts: Sequence[list[int]], progress: Progress) -> list[str]:
        """Greedy answers, many at a time."""
        greedy = Sampling(temperature=0.0, seed=0)
        requests = [Request(prompt=ids, max_tokens=self.max_tokens, sampling=greedy) for ids in prompts]
        texts: list[str] = []
        with Engine(self.model, EngineConfig()) as engine:
            for answer in [engine.submit(request) for request in requests]:
                texts.append("".join(chunk.text for chunk in engine.chunks(answer)))
                progress(len(texts))
        return texts


def texts(task: Task) -> int:
    """How many texts a model is asked about."""
    if task.kind == "choice":
        return sum(len(record["choices"]) for record in task.records)
    return len(task.records) * (2 if task.kind == "pairs" else 1)


def _share(name: str, hits: Sequence[bool]) -> Figure:
    return Figure(
        name=name,
        ratio=Ratio(above=np.array(hits, dtype=float), below=np.ones(len(hits))),
        percent=True,
        lower=False,
    )


def _figure(name: str, above: np.ndarray, below: np.ndarray, *, lower: bool) -> Figure:
    return Figure(name=name, ratio=Ratio(above=above, below=below), percent=False, lower=lower)
