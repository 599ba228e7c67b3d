"""Records to token samples.

A record is a JSON object with "text", with "prompt" and "response", or with "messages" (and "tools") as in
Chat Completions; "kind" is kept for statistics and
filtering, and other keys ("source", "licence", ...) are provenance that training does not read.
Conversations use V4's non-thinking encoding, with the marks as tokens and the words of both sides as plain
text: a user who types a mark's spelling must not forge one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fourfold.errors import TrainError
from fourfold.protocol import PromptFormat
from fourfold.tokenizer import Tokenizer
from fourfold.train.chat_samples import EOS, Encoded, conversation
from fourfold.train.config import FileSection
from fourfold.train.sources import read_records

BOS = "<｜begin▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
USER, ASSISTANT, NO_THINKING = "<｜User｜>", "<｜Assistant｜>", "</think>"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """ids: int32 [n].  answer: bool [n], the tokens that an answer is made of (all of a text)."""

    ids: np.ndarray
    answer: np.ndarray
    weight: float
    kind: str = "text"


class Encoder:
    """Records to ids with the tokenizer of the trained model."""

    def __init__(self, path: str | Path, prompt_format: PromptFormat = "preview") -> None:
        """path: tokenizer.json or its folder.  prompt_format: of "messages".

        Raises TokenizerError if it is missing or lacks a mark.
        """
        self.path = Path(path)
        self.tokenizer = Tokenizer(path)
        self.prompt_format = prompt_format
        self.marks = {m: self.tokenizer.token_id(m) for m in (BOS, EOS, USER, ASSISTANT, NO_THINKING)}
        self.pad = self.tokenizer.special_ids.get(PAD, self.marks[EOS])

    def record(self, record: dict[str, Any]) -> tuple[list[int], int]:
        """(ids with BOS and EOS, index of the first token of the answer) of one record."""
        marks, encode = self.marks, self.tokenizer.encode
        if "text" in record:
            return [marks[BOS], *encode(record["text"]), marks[EOS]], 0
        head = [marks[BOS], marks[USER], *encode(record["prompt"]), marks[ASSISTANT], marks[NO_THINKING]]
        return [*head, *encode(record["response"]), marks[EOS]], len(head)

    def samples(self, record: dict[str, Any]) -> list[Encoded]:
        """Ids, and which of them are an answer's, of all samples of one record."""
        if "messages" in record:
            return conversation(record, self.tokenizer, self.marks[EOS], self.prompt_format)
        ids, start = self.record(record)
        return [(ids, [False] * start + [True] * (len(ids) - start))]


def read_samples(encoder: Encoder, sections: tuple[FileSection, ...]) -> list[Sample]:
    """All samples of the files, in file order."""
    samples = []
    for section in sections:
        for record in read_records(section):
            samples += [
                Sample(
                    ids=np.asarray(ids, dtype=np.int32),
                    answer=np.asarray(answer, dtype=bool),
                    kind=str(record.get("kind", "text")),
                    weight=section.weight,
                )
                for ids, answer in encoder.samples(record)
            ]
    if not samples:
        raise TrainError(f"no samples in {', '.join(s.path for s in sections)}")
    return samples
