"""What does converting a checkpoint for Ascend cost?  Quality of each recipe against the original in `exact`.

    python -m bench.conversion [--checkpoint FOLDER] --text models/corpus/train.jsonl.xz \\
        --heldout models/corpus/heldout.jsonl.xz [--documents 100] [--out results.json]

For w8a8 and w4a8, scales searched by weight error alone and calibrated on documents of --text, and for each
numerics: mean KL(original exact ‖ converted) in nats, share of equal first choices, and held-out loss in nats
per answer token, over documents of --heldout.  The original's own rows stand first, to compare with.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fourfold
from bench.gemv import commit
from fourfold.calibration import calibrate
from fourfold.conformance.logits import kl_divergence
from fourfold.kernels.cpu.processor import processor
from fourfold.train.config import FileSection
from fourfold.train.corpus import Encoder, Sample, read_samples
from fourfold.train.sources import read_records
from fourfold.weights.export import export_recipe

NUMERICS = ("exact", "deployed", "fast")


def words(path: Path, documents: int) -> str:
    """Text of so many documents, chosen by a fixed seed."""
    found = [
        record.get("text") or f"{record['prompt']}\n{record['response']}"
        for record in read_records(FileSection(path=str(path)))
    ]
    return "\n\n".join(random.Random(0).sample(found, min(documents, len(found))))


def held_out(folder: Path, path: Path, documents: int) -> list[Sample]:
    """So many documents, chosen by a fixed seed."""
    samples = read_samples(Encoder(folder), (FileSection(path=str(path)),))
    return random.Random(1).sample(samples, min(documents, len(samples)))


def logits(folder: Path, numerics: str, samples: list[Sample]) -> Iterator[Tensor]:
    """[T, V] of each document."""
    model = fourfold.load(folder, numerics=numerics)
    with torch.no_grad():
        for sample in samples:
            yield model(torch.from_numpy(sample.ids).long().unsqueeze(0)).logits[0].double()


def quality(expected: list[Tensor], got: Iterator[Tensor], samples: list[Sample]) -> dict[str, float]:
    """The three figures, over all tokens of the documents."""
    kl = same = loss = tokens = answers = 0.0
    for before, after, sample in zip(expected, got, samples, strict=True):
        kl += float(kl_divergence(before, after).sum())
        same += float((before.argmax(-1) == after.argmax(-1)).sum())
        tokens += len(before)
        start = max(int(sample.answer.argmax()), 1)
        targets = torch.from_numpy(sample.ids[start:]).long()
        loss += float(torch.nn.functional.cross_entropy(after[start - 1 : -1], targets, reduction="sum"))
        answers += len(targets)
    return {"kl_nats": kl / tokens, "same_first_choice": same / tokens, "heldout_nats": loss / answers}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=fourfold.shipped_model())
    parser.add_argument("--text", type=Path, required=True, help="records to calibrate on")
    parser.add_argument("--heldout", type=Path, required=True)
    parser.add_argument("--calibration-documents", type=int, default=300)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    options = parser.parse_args()
    samples = held_out(options.checkpoint, options.heldout, options.documents)
    text = calibrate(options.checkpoint, words(options.text, options.calibration_documents))
    expected = list(logits(options.checkpoint, "exact", samples))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        converted: dict[str, Path] = {"original": options.checkpoint}
        for recipe in ("w8a8", "w4a8"):
            for name, importance in ((recipe, None), (f"{recipe} calibrated", text.importance)):
                begun = time.process_time()
                converted[name] = Path(folder) / name.replace(" ", "-")
                export_recipe(options.checkpoint, converted[name], recipe, importance=importance)
                print(f"{name}: converted in {time.process_time() - begun:.1f} CPU seconds", file=sys.stderr)
        print(f"{'':18}{'numerics':>10}{'KL, nats':>12}{'same choice':>13}{'held out':>10}")
        for name, path in converted.items():
            for numerics in NUMERICS:
                found = quality(expected, logits(path, numerics, samples), samples)
                rows.append({"checkpoint": name, "numerics": numerics, **found})
                kl, same, loss = found.values()
                print(f"{name:18}{numerics:>10}{kl:12.5f}{same:13.2%}{loss:10.4f}")
    document = {
        "question": "conversion",
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "torch": torch.__version__,
        "commit": commit(),
        "command": " ".join(["python", "-m", "bench.conversion", *sys.argv[1:]]),
        "model": options.checkpoint.name,
        "calibration_tokens": text.tokens,
        "documents": len(samples),
        "tokens": sum(len(sample.ids) for sample in samples),
        "results": rows,
    }
    print(json.dumps(document))
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
