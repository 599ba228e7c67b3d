"""How fast does a model run whose experts do not fit in RAM?  Tokens a second against the share that does.

    python -m bench.tiers FOLDER [--copy DIR] [--shares 25 50 75 100] [--out results.json] [--plot curve.svg]

FOLDER is a checkpoint, for one of `fourfold synth FOLDER --layers 4 --experts 64`.  For each share of the
experts: a prefill, tokens that warm the cache, then timed single tokens.  Between the shares, in the same
run, the disk's own rate: whole experts at random places of the same files, six reads in flight, nothing
computed.  With --copy experts come from a page-aligned copy there, else from the checkpoint itself.  At 100
everything is resident.  The limit of a share is the lower of two: the disk's rate over the bytes that were
read a token, and the speed of the resident model.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fourfold
from bench.gemv import commit
from fourfold.config import ModelConfig
from fourfold.kernels import cpu
from fourfold.kernels.cpu.processor import processor
from fourfold.tiers.copy import copied
from fourfold.tiers.files import WatchedFile
from fourfold.tiers.reader import READERS, aligned_bytes, buffer_bytes
from fourfold.tiers.table import PAGE, ExpertTable
from fourfold.weights.load import checkpoint_items

_IN_FLIGHT = 6
_SHARES = ("share_of_disk", "share_of_limit")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, where its experts are read from, and its bytes besides them."""

    folder: Path
    copy: Path | None
    table: ExpertTable
    dense: int

    @classmethod
    def open(cls, folder: Path, copy: Path | None) -> Checkpoint:
        config = ModelConfig.from_file(folder / "config.json")
        items = checkpoint_items(folder, config)
        table = ExpertTable.of_checkpoint(items, config.n_routed_experts)
        dense = sum(item.stored.nbytes for item in items if item.expert is None)
        return cls(folder, copy, table if copy is None else copied(table, copy), dense)

    def ram(self, share: float) -> int:
        """A budget in which this share of the experts fits."""
        size = self.table.expert_bytes
        fixed = self.dense + READERS * buffer_bytes(size)
        return fixed + max(1, round(share * self.table.experts)) * size


def disk_rate(table: ExpertTable, seconds: float) -> float:
    """Bytes a second of whole experts at random places, _IN_FLIGHT at a time."""
    files = [WatchedFile(path) for path in table.files]
    stop = time.perf_counter() + seconds
    counts = [0] * _IN_FLIGHT

    def work(number: int) -> None:
        drawn, room = random.Random(number), aligned_bytes(2 * table.expert_bytes + 2 * PAGE)
        while time.perf_counter() < stop:
            expert = drawn.randrange(table.experts)
            for file, start, end in _extents(table, expert):
                first = start // PAGE * PAGE
                files[file].read([room[: -(-(end - first) // PAGE) * PAGE].data], first, end - first)
                counts[number] += end - start

    threads = [threading.Thread(target=work, args=(number,)) for number in range(_IN_FLIGHT)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begun)


def _extents(table: ExpertTable, expert: int) -> list[tuple[int, int, int]]:
    """file, start, end of each stretch that holds parts of the expert, next to each other."""
    found: list[tuple[int, int, int]] = []
    parts = zip(table.file[expert].tolist(), table.offset[expert].tolist(), table.parts, strict=True)
    for file, start, part in sorted(parts, key=lambda entry: entry[:2]):
        end = start + part.nbytes
        if found and found[-1][0] == file and start - found[-1][2] < PAGE:
            found[-1] = (file, found[-1][1], end)
        else:
            found.append((file, start, end))
    return found


def measure(checkpoint: Checkpoint, percent: int, options: argparse.Namespace) -> dict[str, Any]:
    """One budget: speeds, and what the experts cost while single tokens were timed."""
    ram = checkpoint.ram(percent / 100) if percent < 100 else "1TiB"
    model = fourfold.load(checkpoint.folder, numerics=options.numerics, ram=ram, expert_copy=checkpoint.copy)
    ids = torch.randint(2, model.config.vocab_size, (1, options.prompt + options.warm + options.tokens))
    with torch.no_grad():
        cache = model.new_cache()
        begun = time.perf_counter()
        model(ids[:, : options.prompt], cache, logits="last")
        prefill = time.perf_counter() - begun
        for i in range(options.prompt, options.prompt + options.warm):
            model(ids[:, i : i + 1], cache)
        before = model.tiers.stats() if model.tiers else None
        begun = time.perf_counter()
        for i in range(options.prompt + options.warm, ids.shape[1]):
            model(ids[:, i : i + 1], cache)
        decode = time.perf_counter() - begun
    row: dict[str, Any] = {
        "share": percent,
        "prefill_tokens_per_second": options.prompt / prefill,
        "decode_tokens_per_second": options.tokens / decode,
    }
    if model.tiers is not None and before is not None:
        spent = model.tiers.stats() - before
        row |= spent.to_dict() | {"read_bytes_per_second": spent.bytes_read / decode}
        model.tiers.close()
    return row


def plot(document: dict[str, Any], file: Path) -> None:
    """Tokens a second against the share in RAM, below what the disk and the resident model allow.

    The limit: the disk's best rate over the bytes read a token (between the measured shares: linear, none at
    100 %), and no more than with everything in RAM.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = sorted(document["rows"], key=lambda row: row["share"])
    shares = [row["share"] for row in rows]
    speeds = [row["decode_tokens_per_second"] for row in rows]
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rate, top = document["disk_bytes_per_second"]["best"], 1.2 * max(speeds)
    read = [row.get("bytes_read", 0) / document["tokens"] for row in rows]
    fine = np.linspace(shares[0], shares[-1], 400)
    limit = rate / np.maximum(np.interp(fine, shares, read), rate / (2 * top))
    label = f"limit of the disk ({rate / 1e9:.2f} GB/s, whole experts, QD6)"
    axes.plot(fine, limit, color="#c44e52", linewidth=1.5, label=label)
    resident = speeds[-1] if shares[-1] == 100 else 2 * top
    axes.fill_between(fine, np.minimum(limit, resident), 2 * top, color="black", alpha=0.05, linewidth=0)
    if shares[-1] == 100:
        label = "everything in RAM"
        axes.axhline(speeds[-1], color="#55a868", linestyle="--", linewidth=1.5, label=label)
    axes.plot(shares, speeds, "o-", color="#4c72b0", linewidth=2, label="measured", zorder=3)
    for row, share, speed in zip(rows, shares, speeds, strict=True):
        text = f"{speed:.1f}"
        if "share_of_limit" in row:
            text += f"\n{100 * row['share_of_limit']:.0f} % of limit"
        axes.annotate(text, (share, speed), (6, -8), textcoords="offset points", fontsize=8, va="top")
    axes.set(xlabel="experts that RAM holds, %", ylabel="tokens/s, one sequence", ylim=(0, top))
    axes.set(xticks=shares, xlim=(shares[0] - 5, shares[-1] + 9))
    shape = f"{document['layers']} layers of {document['experts'] // document['layers']} experts"
    threads = f"{document['threads']} thread{'' if document['threads'] == 1 else 's'}"
    axes.set_title(f"{shape}, {document['processor']}, {threads}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file, dpi=150)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--copy", type=Path, help="folder for a page-aligned copy of the experts")
    parser.add_argument("--shares", type=int, nargs="+", default=[25, 50, 75, 100])
    parser.add_argument("--numerics", default="fast")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--warm", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--probe", type=float, default=3.0, help="seconds of each reading of the disk")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    parser.add_argument("--plot", type=Path, help="draw the curve: .svg or .png")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    cpu.use_threads(options.threads)
    checkpoint = Checkpoint.open(options.folder, options.copy)
    best: dict[int, dict[str, Any]] = {}
    rates = []
    for _ in range(options.rounds):
        for share in options.shares:
            rates.append(disk_rate(checkpoint.table, options.probe))
            row = measure(checkpoint, share, options)
            if "read_bytes_per_second" in row:
                # The disk may be shared: its rate just before and just after is what there was to have.
                rates.append(disk_rate(checkpoint.table, options.probe))
                row["disk_bytes_per_second"] = max(rates[-2:])
                row["share_of_disk"] = row["read_bytes_per_second"] / row["disk_bytes_per_second"]
            name = "decode_tokens_per_second"
            if share not in best or row[name] > best[share][name]:
                best[share] = row
    add_limits(list(best.values()), options.tokens)
    report(options, checkpoint, list(best.values()), rates)


def add_limits(rows: list[dict[str, Any]], tokens: int) -> None:
    """What the disk, and the processor with everything in RAM, would allow, and the share of it reached."""
    resident = [row["decode_tokens_per_second"] for row in rows if "bytes_read" not in row]
    for row in rows:
        if row.get("bytes_read"):
            disk = row["disk_bytes_per_second"] * tokens / row["bytes_read"]
            row["limit_tokens_per_second"] = min([disk, *resident])
            row["share_of_limit"] = row["decode_tokens_per_second"] / row["limit_tokens_per_second"]


def report(
    options: argparse.Namespace, checkpoint: Checkpoint, rows: list[dict[str, Any]], rates: list[float]
) -> None:
    """The table, the JSON line, and files where asked for."""
    print(
        f"{'experts in RAM':>14} {'prefill':>9} {'decode':>9} {'hits':>6} {'stalled':>8} {'GB/s read':>10} "
        f"{'of disk':>8} {'of limit':>9}"
    )
    for row in rows:
        asked = sum(row.get(key, 0) for key in ("hits", "prefetched", "misses"))
        hits = f"{100 * row['hits'] / asked:.0f} %" if asked else "-"
        read = f"{row['read_bytes_per_second'] / 1e9:.2f}" if asked else "-"
        of_disk, of_limit = (f"{100 * row[key]:.0f} %" if key in row else "-" for key in _SHARES)
        stalled = f"{row['stall_seconds']:.1f} s" if asked else "-"
        speeds = (row["prefill_tokens_per_second"], row["decode_tokens_per_second"])
        print(
            f"{row['share']:>12} % {speeds[0]:>9.1f} {speeds[1]:>9.2f} {hits:>6} {stalled:>8} {read:>10} "
            f"{of_disk:>8} {of_limit:>9}"
        )
    document = {
        "question": "tiers",
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "isa": cpu.describe()["isa"],
        "torch": torch.__version__,
        "commit": commit(),
        "command": " ".join(["python -m bench.tiers", *sys.argv[1:]]),
        "note": options.note,
        "threads": options.threads,
        "numerics": options.numerics,
        "source": "aligned copy" if options.copy else "checkpoint",
        "layers": len(checkpoint.table.layers),
        "experts": checkpoint.table.experts,
        "expert_bytes": checkpoint.table.expert_bytes,
        "dense_bytes": checkpoint.dense,
        "tokens": options.tokens,
        "disk_bytes_per_second": {"best": max(rates), "median": sorted(rates)[len(rates) // 2]},
        "rows": rows,
    }
    print(json.dumps(document))
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        plot(document, options.plot)


if __name__ == "__main__":
    main()
