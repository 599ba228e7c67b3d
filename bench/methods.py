"""What is each way of teaching worth?  One small student, equal budgets, measured on the same records.

    python -m bench.methods DIR [--base-steps 60] [--steps 40] [--prompts 300] [--threads 2]
        [--out results.json]

The teacher is the shipped model, the student that of examples/distil, which first reads other text (sentences
of WordNet) for `--base-steps`.  From there each way has `--steps` steps of about as many learnt tokens: more
of that text; the teacher's answers (sequence level); the same answers and the teacher's logits; its own
answers, judged by the teacher (on policy); and half of each of the last two.  Runs in DIR that are done are
not done again. `sequence kl` is log(student / teacher) a token of answers that the student draws to prompts
that nobody learnt from.
"""

from __future__ import annotations

import argparse
import datetime
import json
import lzma
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fourfold
from bench.gemv import commit
from fourfold.evaluation.intervals import Ratio, difference, interval
from fourfold.evaluation.measures import Evaluator, Figure
from fourfold.evaluation.scoring import Scored, score
from fourfold.evaluation.tasks import read_task
from fourfold.kernels.cpu.processor import processor
from fourfold.model.transformer import Transformer
from fourfold.train.config import TrainConfig
from fourfold.train.corpus import Encoder
from fourfold.train.policy import Ask, write_answers
from fourfold.train.rollout_log import RolloutLog
from fourfold.train.strict import read_toml
from fourfold.train.trainer import train

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "models" / "corpus"
STUDENT = ROOT / "examples" / "distil"
TASKS = (
    CORPUS / "heldout.jsonl.xz",
    ROOT / "models" / "eval" / "cloze.jsonl",
    ROOT / "models" / "eval" / "minimal_pairs.jsonl",
)
ANSWERS, LENGTH = 2, 96
DRAWN = 64
KL = "sequence kl"


def questions(file: Path, count: int) -> list[str]:
    """So many prompts of a corpus file, in an order that mixes its kinds."""
    with lzma.open(file, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    found = sorted({r["prompt"] for r in records if "prompt" in r and r["source"] != "chitchat"})
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))[:count]]


@dataclass(frozen=True)
class Written:
    """An answer.  start: where it begins in ids, which end with its end if it has one."""

    ids: list[int]
    start: int
    text: str
    whole: bool


def write(
    model: Transformer, asked: Sequence[str], answers: int, temperature: float, log: Path
) -> list[Written]:
    """Answers of `model` to each question."""
    assert model.tokenizer is not None
    encoder = Encoder(model.tokenizer.path)
    asks = []
    for number, question in enumerate(asked):
        ids, start = encoder.record({"prompt": question, "response": ""})
        asks += [Ask(prompt=tuple(ids[:start]), seed=number * answers + i) for i in range(answers)]
    kept = RolloutLog(log, "bench")
    write_answers(model, model.tokenizer, asks, kept, max_tokens=LENGTH, temperature=temperature, at_once=64)
    kept.close()
    found = []
    for number, ask in enumerate(asks):
        said, whole = kept.tokens.get(number, []), kept.ended[number] == "stop"
        ids = [*ask.prompt, *said, *([model.config.eos_token_id] if whole else [])]
        found.append(Written(ids, len(ask.prompt), model.tokenizer.decode(said), whole))
    return found


class Bench:
    """The runs of one folder."""

    def __init__(self, folder: Path, *, base_steps: int, steps: int, prompts: int, threads: int) -> None:
        self.folder, self.base_steps, self.steps, self.threads = folder, base_steps, steps, threads
        self.teacher = fourfold.load(fourfold.shipped_model(), numerics="fast")
        self.tasks = [read_task(path) for path in TASKS]
        self.held_out = questions(CORPUS / "heldout.jsonl.xz", DRAWN)
        self.costs: dict[str, dict[str, float]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._prepare_answers(prompts)

    def _prepare_answers(self, count: int) -> None:
        """The teacher's answers, and the prompts alone."""
        asked = questions(CORPUS / "train.jsonl.xz", count)
        begun = time.perf_counter()
        answers = write(self.teacher, asked, ANSWERS, 0.9, self.folder / "asked.jsonl")
        self.asking = time.perf_counter() - begun
        pairs = zip([q for q in asked for _ in range(ANSWERS)], answers, strict=True)
        records = [{"prompt": q, "response": a.text} for q, a in pairs if a.whole and a.text]
        self.answers, self.prompts = self.folder / "answers.jsonl", self.folder / "prompts.jsonl"
        self.answers.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        self.prompts.write_text("".join(json.dumps({"prompt": q}) + "\n" for q in asked), encoding="utf-8")

    def run(self, name: str, begin: str, steps: int, **changes: Mapping[str, Any]) -> str:
        """A training run of the student; its export.  begin: export to start from."""
        values = read_toml(STUDENT / "student.toml")
        values["model"] = {"config": str(STUDENT / "config.json"), "init_from": begin}
        values["data"] |= {"held_out_share": 0.0, "tokenizer": str(fourfold.shipped_model())}
        values["run"] |= {
            "dir": str(self.folder / name), "steps": steps, "threads": self.threads, "checkpoint_every": 10,
            "eval_every": 0, "log_every": 20,
        }  # fmt: skip
        if begin:
            values["optimizer"] |= {"lr": 2e-3, "adamw_lr": 2e-3}
            values["quantisation"] = {"start": 0.0}
        for section, change in changes.items():
            values[section] = values.get(section, {}) | change
        result = train(TrainConfig.from_dict(values))
        self.costs[name] = {"learnt_tokens": result.tokens, "seconds": round(result.seconds, 1)}
        return str(result.export)

    def text(self, name: str, begin: str, steps: int) -> str:
        """From text that is not the teacher's."""
        files = [{"path": str(CORPUS / "sentences.jsonl.xz")}]
        return self.run(name, begin, steps, data={"files": files, "loss_on": "all"})

    def taught(self, name: str, begin: str, steps: int, **changes: Mapping[str, Any]) -> str:
        """From the teacher's answers."""
        return self.run(name, begin, steps, data={"files": [{"path": str(self.answers)}]}, **changes)

    def logits(self, name: str, begin: str, steps: int) -> str:
        """From these and its logits."""
        teacher = {"teacher": str(fourfold.shipped_model()), "cache": str(self.folder / "states")}
        return self.taught(name, begin, steps, distil=teacher)

    def on_policy(self, name: str, begin: str, steps: int) -> str:
        """From the student's own answers."""
        files = [{"path": str(self.prompts)}]
        return self.run(
            name,
            begin,
            steps,
            data={"files": []},
            rollout={"prompts": files, "batch": 40, "samples": 1, "max_tokens": LENGTH},
            on_policy={"teachers": [{"path": str(fourfold.shipped_model())}]},
        )

    def students(self) -> dict[str, str]:
        """Export of each way."""
        base = self.text("base", "", self.base_steps)
        half = self.logits("half", base, self.steps // 2)
        return {
            "before": base,
            "text": self.text("text", base, self.steps),
            "answers": self.taught("answers", base, self.steps),
            "logits": self.logits("logits", base, self.steps),
            "on policy": self.on_policy("on policy", base, self.steps),
            "logits, then on policy": self.on_policy("both", half, self.steps - self.steps // 2),
        }

    def measured(self, name: str, export: str) -> list[Figure]:
        """All figures of one student."""
        model = fourfold.load(export, numerics="fast")
        evaluator = Evaluator(model, "preview", LENGTH)
        figures = []
        for task in self.tasks:
            found = evaluator.run(task, lambda done: None)
            figures += [replace(figure, name=f"{task.name}: {figure.name}") for figure in found]
        drawn = write(model, self.held_out, 1, 1.0, self.folder / f"drawn-{name}.jsonl")
        texts = [Scored(ids=a.ids, start=a.start) for a in drawn if len(a.ids) > a.start]
        own, theirs = score(model, texts), score(self.teacher, texts)
        gap = np.array([mine.logprob - other.logprob for mine, other in zip(own, theirs, strict=True)])
        tokens = np.array([mine.tokens for mine in own], dtype=float)
        kl = Figure(name=KL, ratio=Ratio(above=gap, below=tokens), percent=False, lower=True)
        return [*figures, kl]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--base-steps", type=int, default=60)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(
        options.folder,
        base_steps=options.base_steps,
        steps=options.steps,
        prompts=options.prompts,
        threads=options.threads,
    )
    figures = {name: bench.measured(name, export) for name, export in bench.students().items()}
    rows = []
    for name, found in figures.items():
        for figure, before in zip(found, figures["before"], strict=True):
            gap, low, high = difference(figure.ratio, before.ratio)
            row: dict[str, Any] = {"way": name, "figure": figure.name, "value": figure.ratio.value}
            row["interval"] = interval(figure.ratio)
            if figure.name != KL:  # whose records are each student's own
                row |= {"difference": gap, "difference_interval": (low, high)}
            rows.append(row)
            print(f"{name:24} {figure.name:40} {figure.ratio.value:9.4f}", file=sys.stderr)
    document = {
        "bench": "methods",
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "commit": commit(),
        "torch": torch.__version__,
        "threads": options.threads,
        "base_steps": options.base_steps,
        "steps": options.steps,
        "prompts": options.prompts,
        "answers": ANSWERS,
        "asking_seconds": round(bench.asking, 1),
        "costs": bench.costs,
        "rows": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
