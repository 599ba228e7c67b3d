"""How fast does the trainer train, and in how much memory?  Beside the same model in transformers' V4.

    python -m bench.training [--config models/train/fourfold-16m.json] [--rows 16] [--length 256] \\
        [--steps 6] [--threads 2] [--dtype bfloat16] [--out results.json]

Every side is a process of its own, with the same start weights and the same batches (rows of one document,
as transformers' V4 cannot keep packed documents apart): forward, backward, update. They take turns step by
step, so that whatever else the machine does falls on all of them. transformers runs what its users write: its
own loss, autocast, torch's AdamW. Ours runs with AdamW, which is the same work, and with Muon, as published;
without MTP, which transformers' V4 does not have. The first steps are left out (torch.compile works then).
Peak memory is the process's largest resident set, less what it was before the model was built; that of a
compiled side includes the compiler.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gemv import commit
from fourfold.config import ModelConfig
from fourfold.kernels.cpu.processor import processor
from fourfold.train.config import FileSection, TrainConfig
from fourfold.train.runtime import prepare_cpu
from fourfold.train.sources import read_records
from fourfold.train.trainer import Trainer
from fourfold.weights.names import checkpoint_spec, parameter_of

SIDES = ("transformers", "fourfold adamw", "fourfold adamw compiled", "fourfold muon compiled")
"""transformers first: the others are measured against it."""
ROOT = Path(__file__).parents[1]
Step = Callable[[], float]


def settings(options: argparse.Namespace, folder: Path, side: str) -> TrainConfig:
    """One of our runs, in `folder`."""
    return TrainConfig.from_dict(
        {
            "model": {"config": str(options.config), "init_std": 0.05},
            "data": {
                "tokenizer": str(options.tokenizer),
                "files": [{"path": str(folder / "text.jsonl")}],
                "held_out_share": 0.0,
                "sequence_length": options.length,
                "batch_size": options.rows,
            },
            "optimizer": {
                "matrices": "muon" if "muon" in side else "adamw",
                "adamw_lr": 1e-3,
                "lr": 1e-3,
                "eps": 1e-8,
                "clip": 0.0,
                "steps": [5, 1],
            },
            "schedule": {"kind": "constant", "warmup": 0.0},
            "loss": {"mtp": 0.0, "mtp_final": 0.0, "balance": 0.0, "bias_update": 0.0},
            "quantisation": {"start": 1.0},
            "run": {
                "dir": str(folder / side.replace(" ", "-")),
                "steps": 1_000_000,
                "dtype": options.dtype,
                "threads": options.threads,
                "compile": "compiled" in side,
                "export": False,
            },
        }
    )


def ours(options: argparse.Namespace, folder: Path, side: str) -> Step:
    """The trainer's own step."""
    trainer = Trainer(settings(options, folder, side))
    return lambda: trainer.step()["loss"]


def theirs(options: argparse.Namespace, folder: Path, side: str) -> Step:
    """The loop that transformers' users write, on the weights that ours starts from."""
    from fourfold.bench.peers_transformers import build

    prepare_cpu(options.threads)
    trainer = Trainer(settings(options, folder, "fourfold adamw"))
    masters, data = trainer.objective.masters(), trainer.data
    config = ModelConfig.from_file(options.config)
    official = {
        name: partial(_row, masters, *parameter_of(name))
        for name in checkpoint_spec(config)
        if not name.startswith("mtp.")
    }
    model = build(config, official, torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    del trainer, masters, official

    def step() -> float:
        ids = data.next().ids
        with torch.autocast("cpu", torch.bfloat16, enabled=options.dtype == "bfloat16"):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def _row(masters: dict[str, Tensor], parameter: str, expert: int | None) -> Tensor:
    whole = masters[parameter]
    return (whole if expert is None else whole[expert]).clone()


def resident() -> int:
    """Largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(options: argparse.Namespace) -> None:
    """A side: a step for each line on stdin."""
    folder = Path(options.folder)
    if options.side == "transformers":
        import transformers  # noqa: F401  (its own weight is not the model's)
    before = resident()
    step = (theirs if options.side == "transformers" else ours)(options, folder, options.side)
    for _ in sys.stdin:
        begun, cpu = time.perf_counter(), time.process_time()
        loss = step()
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        found = {"seconds": seconds, "cpu_seconds": cpu, "loss": loss, "bytes": resident() - before}
        print(json.dumps(found), flush=True)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, float]]]:
    """All steps of all sides, in turns."""
    workers = {
        side: subprocess.Popen(
            [sys.executable, "-m", "bench.training", *sys.argv[1:], "--side", side, "--folder", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if options.quiet else None,
            text=True,
            cwd=ROOT,
        )
        for side in options.sides
    }
    found: dict[str, list[dict[str, float]]] = {side: [] for side in workers}
    try:
        for number in range(options.warmup + options.steps):
            for side, worker in workers.items():
                assert worker.stdin is not None and worker.stdout is not None
                print("step", file=worker.stdin, flush=True)
                found[side].append(json.loads(worker.stdout.readline()))
            print(
                f"step {number}: " + ", ".join(f"{s} {f[-1]['seconds']:.2f} s" for s, f in found.items()),
                file=sys.stderr,
            )
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return found


def summary(options: argparse.Namespace, found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """A row for each side: medians over the steps that count, against the first side's."""
    tokens = options.rows * options.length
    rows: list[dict[str, Any]] = []
    for side, steps in found.items():
        counted = steps[options.warmup :]
        seconds = statistics.median(step["seconds"] for step in counted)
        rows.append(
            {
                "side": side,
                "tokens_per_second": round(tokens / seconds, 1),
                "seconds": [round(step["seconds"], 4) for step in counted],
                "cpu_seconds": [round(step["cpu_seconds"], 4) for step in counted],
                "peak_bytes": int(steps[-1]["bytes"]),
                "losses": [round(step["loss"], 4) for step in steps],
            }
        )
        # Step by step against the other's step right before it, so that both had the same machine.
        ratios = [
            theirs["seconds"] / own["seconds"]
            for theirs, own in zip(found[options.sides[0]][options.warmup :], counted, strict=True)
        ]
        rows[-1]["ratio"] = round(statistics.median(ratios), 3)
    return rows


def write_text(path: Path, options: argparse.Namespace) -> None:
    """One document of the corpus after the other as one text, so that every row is full."""
    texts = []
    needed = options.rows * options.length * (options.steps + options.warmup + 2) * 6
    for record in read_records(FileSection(path=str(options.text))):
        texts.append(record.get("text") or f"{record['prompt']} {record['response']}")
        needed -= len(texts[-1])
        if needed < 0:
            break
    path.write_text(json.dumps({"text": "\n".join(texts)}) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=ROOT / "models/train/fourfold-16m.json")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "fourfold/models/fourfold-16m")
    parser.add_argument("--text", type=Path, default=ROOT / "models/corpus/train.jsonl.xz")
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warmup", type=int, default=2, help="steps that are not counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--sides", nargs="+", default=SIDES)
    parser.add_argument("--quiet", action="store_true", help="do not show what the sides say")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / "text.jsonl", options)
        found = measure(options, Path(folder))
    rows = summary(options, found)
    print(f"{'':26}{'tokens/s':>10}{'ratio':>8}{'peak MiB':>10}{'first loss':>12}{'last':>8}")
    for row in rows:
        print(
            f"{row['side']:26}{row['tokens_per_second']:10,.0f}{row['ratio']:8.2f}"
            f"{row['peak_bytes'] / 2**20:10,.0f}{row['losses'][0]:12.4f}{row['losses'][-1]:8.4f}"
        )
    document = {
        "question": "training",
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "commit": commit(),
        "command": " ".join(["python", "-m", "bench.training", *sys.argv[1:]]),
        "note": options.note,
        "model": options.config.stem,
        "rows": options.rows,
        "length": options.length,
        "threads": options.threads,
        "dtype": options.dtype,
        "results": rows,
    }
    print(json.dumps(document))
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
