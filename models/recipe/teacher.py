"""Let the teacher write: batched sampling over the prompts of prompts.py, as JSON lines.

Finished rows are refilled a few at a time, and the prefix that prompts of a kind share is
computed once. Interrupt it as you like: every line is flushed, and a new seed continues with new
prompts. With --control DIR the files DIR/PAUSE (sleep while it exists) and DIR/STOP (finish)
steer a running process.

usage: python teacher.py TEACHER.gguf --out raw.jsonl --seed 1 [--seconds 600] [--vocab ids.json]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from prompts import TEMPLATES_VERSION, Prompt, stream
from teacher_model import Teacher
from torch import Tensor

TEMPERATURE, TOP_K, TOP_P = 0.8, 64, 0.95
SYSTEM = "You are a helpful assistant."
GROUP = 8  # prompts that are prefilled together
END_TOKENS = ("<|im_end|>", "<|endoftext|>")


def sample(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Top-k, then top-p, at TEMPERATURE.

    logits: [B, V] fp32; returns indices [B] and their log-probability under the full softmax of
    the logits at temperature 1, [B]: a measure of quality, not of the sampling distribution.
    """
    values, indices = logits.topk(TOP_K, dim=-1)
    p = (values / TEMPERATURE).softmax(dim=-1)
    before = p.cumsum(dim=-1) - p
    choice = torch.multinomial(p.masked_fill(before > TOP_P, 0), 1)
    logprob = values.gather(1, choice)[:, 0] - logits.logsumexp(dim=-1)
    return indices.gather(1, choice)[:, 0], logprob


@dataclass
class Row:
    """One sequence in flight."""

    prompt: Prompt
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0


class Writer:
    """The sampling loop over a Teacher's cache rows."""

    def __init__(self, teacher: Teacher, prompts: Iterator[Prompt], out: TextIO, new: int) -> None:
        self.teacher, self.prompts, self.out, self.new = teacher, prompts, out, new
        self.rows: list[Row | None] = [None] * teacher.rows
        self.current = torch.zeros(teacher.rows, dtype=torch.int64)
        self.lengths = torch.zeros(teacher.rows, dtype=torch.int64)
        self.prefixes: dict[str, tuple[list[int], list[tuple[Tensor, Tensor]]]] = {}
        self.ends = {teacher.tokenizer.token_to_id(token) for token in END_TOKENS}
        self.written = self.tokens = self.unfinished = 0

    def _encode(self, prompt: Prompt) -> tuple[list[int], list[int]]:
        """Token ids of the shared prefix and of the rest, split where the prefix text ends."""
        start = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{prompt.prefix.rstrip()}"
        rest = f" {prompt.text}<|im_end|>\n<|im_start|>assistant\n"
        encode = self.teacher.tokenizer.encode
        return encode(start).ids, encode(rest).ids

    def _prefix(self, ids: list[int], key: str) -> list[tuple[Tensor, Tensor]]:
        """Cache entries of a prefix, each [G, P, C]; computed once, in row 0, before any refill."""
        if key not in self.prefixes:
            teacher, P = self.teacher, len(ids)
            held = [(k[0].clone(), v[0].clone()) for k, v in zip(teacher.keys, teacher.values, strict=True)]
            zero = torch.zeros(1, dtype=torch.int64)
            teacher.forward(torch.tensor([ids]), torch.arange(P)[None], zero, zero)
            entries = [
                (k[0, :, :P].clone(), v[0, :, :P].clone())
                for k, v in zip(teacher.keys, teacher.values, strict=True)
            ]
            for (k, v), (old_k, old_v) in zip(
                zip(teacher.keys, teacher.values, strict=True), held, strict=True
            ):
                k[0], v[0] = old_k, old_v
            self.prefixes[key] = (ids, entries)
        return self.prefixes[key][1]

    def refill(self, free: list[int]) -> None:
        """Start a new prompt in each of these rows, in groups of similar length: less padding."""
        prompts = [next(self.prompts) for _ in free]
        encoded = [(prompt, self._encode(prompt)) for prompt in prompts]
        encoded.sort(key=lambda entry: len(entry[1][1]))
        for start in range(0, len(free), GROUP):
            group = encoded[start : start + GROUP]
            self._start(free[start : start + GROUP], [p for p, _ in group], [e for _, e in group])

    def _start(
        self, free: list[int], prompts: list[Prompt], encoded: list[tuple[list[int], list[int]]]
    ) -> None:
        teacher = self.teacher
        entries = [self._prefix(ids, p.prefix) for p, (ids, _) in zip(prompts, encoded, strict=True)]
        width = max(len(rest) for _, rest in encoded)
        ids = torch.zeros(len(free), width, dtype=torch.int64)
        starts = torch.tensor([len(prefix) for prefix, _ in encoded])
        counts = torch.tensor([len(rest) for _, rest in encoded])
        for i, (row, (prefix, rest)) in enumerate(zip(free, encoded, strict=True)):
            ids[i, : len(rest)] = torch.tensor(rest)
            for layer, (k, v) in enumerate(entries[i]):
                teacher.keys[layer][row, :, : len(prefix)] = k
                teacher.values[layer][row, :, : len(prefix)] = v
            self.rows[row] = Row(prompts[i])
        slots = torch.tensor(free)
        positions = starts[:, None] + torch.arange(width)
        logits = teacher.forward(ids, positions, slots, counts - 1)
        self.lengths[slots] = starts + counts
        self._take(free, *sample(logits))

    def step(self) -> None:
        """One token for every row."""
        every = torch.arange(self.teacher.rows)
        zero = torch.zeros_like(every)
        logits = self.teacher.forward(self.current[:, None], self.lengths[:, None], every, zero)
        self.lengths = (self.lengths + 1).clamp_(max=self.teacher.length - 1)
        self._take(every.tolist(), *sample(logits))

    def _take(self, rows: list[int], chosen: Tensor, logprobs: Tensor) -> None:
        """Append the sampled tokens; write and free the rows that ended."""
        ids = self.teacher.keep[chosen]
        self.current[torch.tensor(rows)] = ids
        for index, token, logprob in zip(rows, ids.tolist(), logprobs.tolist(), strict=True):
            row = self.rows[index]
            if row is None:
                continue
            row.logprob += logprob
            if token in self.ends:
                self._write(row)
                self.rows[index] = None
            else:
                row.ids.append(token)
                self.tokens += 1
                if len(row.ids) >= self.new or self.lengths[index] >= self.teacher.length - 1:
                    self.unfinished += 1
                    self.rows[index] = None

    def _write(self, row: Row) -> None:
        record: dict[str, Any] = row.prompt.record()
        record["response"] = self.teacher.tokenizer.decode(row.ids)
        record["mean_logprob"] = round(row.logprob / (len(row.ids) + 1), 4)
        record["tokens"] = len(row.ids)
        record["masked"] = len(self.teacher.keep) < len(self.teacher.embedding)
        record["templates"] = TEMPLATES_VERSION
        self.out.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.written += 1

    def run(self, seconds: float, control: Path | None) -> None:
        """Write until the time is up or control/STOP appears; reports to stderr once a minute."""
        start = report = time.monotonic()
        while (now := time.monotonic()) - start < seconds:
            if control and (control / "STOP").exists():
                break
            while control and (control / "PAUSE").exists() and not (control / "STOP").exists():
                time.sleep(2)
            free = [i for i, row in enumerate(self.rows) if row is None]
            if len(free) >= max(1, len(self.rows) // 16):
                self.refill(free)
            self.step()
            if now - report > 60:
                report = now
                self.out.flush()
                rate = self.tokens / (now - start)
                print(
                    f"teacher: {now - start:.0f} s, {self.written} documents, {self.tokens} tokens"
                    f" ({rate:.0f} tok/s), {self.unfinished} cut off",
                    file=sys.stderr,
                    flush=True,
                )
        self.out.flush()


def kept_ids(vocab: Path | None, teacher_size: int, end: int) -> Tensor | None:
    """Teacher ids that may be sampled: those of the trimmed vocabulary, and the end token."""
    if vocab is None:
        return None
    ids = {i for i in json.loads(vocab.read_text())["teacher_ids"] if 0 <= i < teacher_size}
    return torch.tensor(sorted(ids | {end}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("teacher", type=Path, help="GGUF file of the teacher")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to append to")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--vocab", type=Path, help="teacher_ids.json of the trimmed vocabulary")
    parser.add_argument("--control", type=Path, help="folder to look for PAUSE and STOP in")
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--new", type=int, default=200, help="most tokens of an answer")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    keep = kept_ids(args.vocab, 151_643, 151_645)
    teacher = Teacher(args.teacher, rows=args.rows, length=args.new + 136, keep=keep)
    with args.out.open("a", encoding="utf-8") as out:
        Writer(teacher, stream(args.seed), out, args.new).run(args.seconds, args.control)


if __name__ == "__main__":
    main()
