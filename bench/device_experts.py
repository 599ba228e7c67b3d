"""Which experts belong on a device that cannot hold all?  The share of uses that it serves, by placement.

    python -m bench.device_experts --counted models/corpus/train.jsonl.xz
        --judged models/corpus/heldout.jsonl.xz [--checkpoint FOLDER] [--documents 400] [--out results.json]

With so many experts of each layer on the device (`fourfold … --device-memory`), of all choices of experts
that tokens of --judged make, the share that meets one there.  Rows: the placement without counts, where a
layer routed by token id has those that most ids name and others have their first ones; with
`--expert-counts` of documents of --counted; with counts of the very documents that are judged, which no
placement beats; and what counts of stories are worth to documents that are none.  The main layers alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import fourfold
from bench.conversion import held_out as documents
from bench.gemv import commit
from fourfold.config import ModelConfig
from fourfold.kernels import cpu
from fourfold.kernels.cpu.processor import processor
from fourfold.model.transformer import Transformer
from fourfold.tiers import TieredExperts
from fourfold.tiers.counts import Counts
from fourfold.tiers.split import busiest
from fourfold.train.corpus import Sample
from fourfold.weights.load import checkpoint_items


def opened(folder: Path) -> tuple[Transformer, TieredExperts]:
    """The model with all but one expert in RAM: it counts."""
    items = checkpoint_items(folder, ModelConfig.from_file(folder / "config.json"))
    model = fourfold.load(folder, numerics="fast", ram=sum(item.stored.nbytes for item in items) - 1)
    assert isinstance(model.tiers, TieredExperts)
    return model, model.tiers


def uses(model: Transformer, tiers: TieredExperts, samples: Sequence[Sample]) -> Counts:
    """[layers, E] of these documents."""
    before = tiers.uses.now.copy()
    with torch.no_grad():
        for sample in samples:
            model(torch.from_numpy(sample.ids).long().unsqueeze(0))
    return tiers.uses.now - before


def shares(
    model: Transformer, tiers: TieredExperts, rows: dict[str, tuple[Counts, Counts]]
) -> dict[str, list[float]]:
    """Of the second counts of each row, what is served by 1, 2, … E - 1 experts placed by the first ones."""
    return {
        name: [
            busiest(model, tiers.table, held, counted).share(judged) for held in range(1, counted.shape[1])
        ]
        for name, (counted, judged) in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=fourfold.shipped_model())
    parser.add_argument("--counted", type=Path, required=True)
    parser.add_argument("--judged", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=400, help="of each, at most")
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    options = parser.parse_args()
    model, tiers = opened(options.checkpoint)
    read = {
        path: documents(options.checkpoint, path, options.documents)
        for path in (options.counted, options.judged)
    }
    stories, others = {}, {}
    for path, samples in read.items():
        stories[path] = uses(model, tiers, [sample for sample in samples if sample.kind == "story"])
        others[path] = uses(model, tiers, [sample for sample in samples if sample.kind != "story"])
    before, judged = (stories[path] + others[path] for path in (options.counted, options.judged))
    rows = {
        "not counted": (np.zeros_like(before), judged),
        "counted": (before, judged),
        "counted on the judged": (judged, judged),
        "not counted; no stories": (np.zeros_like(before), others[options.judged]),
        "counted on stories; no stories": (stories[options.counted], others[options.judged]),
    }
    found = shares(model, tiers, rows)
    print(f"{'experts of a layer on the device':34}" + "".join(f"{n:>6}" for n in range(1, before.shape[1])))
    for name, values in found.items():
        print(f"{name:34}" + "".join(f"{value:6.0%}" for value in values))
    document = {
        "question": "device experts",
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "isa": cpu.describe()["isa"],
        "torch": torch.__version__,
        "commit": commit(),
        "command": " ".join(["python", "-m", "bench.device_experts", *sys.argv[1:]]),
        "model": options.checkpoint.name,
        "tokens": {str(path): sum(len(sample.ids) for sample in samples) for path, samples in read.items()},
        "uses": {"counted": before.tolist(), "judged": judged.tolist()},
        "shares": found,
    }
    print(json.dumps(document))
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    tiers.close()


if __name__ == "__main__":
    main()
