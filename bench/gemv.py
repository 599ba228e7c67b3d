"""How fast does one token read its weights?  Matrix-vector products from FP4 and FP8, against reading alone.

    python bench/gemv.py [--rows 2048] [--columns 4096] [--threads 1 2] [--out results.json]

Every product cycles over copies that together exceed the caches, as a decoding step does.  Rows of the table:
plain read (a sum over float32 in the same memory), the native kernels for 1, 4 and 16 rows of x in float32,
the same in `fast` numerics on each instruction set (bf16 inputs, or those that suit FP4), the reference
(decode, then multiply), and torch's bfloat16 product, in bytes of weights and scales as stored.
Scales differ by a factor of up to 8, those of "fp4 wide" by up to 512: more than AMX sums at once.
Best of the rounds; all take turns within a round, so that a busy moment hits each of them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fourfold.kernels import cpu, reference
from fourfold.kernels.cpu.processor import processor
from fourfold.kernels.formats import Rounding

_COLD_BYTES = 192 << 20
_SECONDS_A_MEASUREMENT = 0.15
_LEAST_SCALE = {"fp4": 124, "fp4 wide": 118, "fp8": 118}  # e8m0; the largest is 127


def packed(kind: str, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A random stored matrix: FP4 [O, I/2] with e8m0 [O, I/32], or FP8 [O, I] with e8m0 a 128x128 block."""
    if kind.startswith("fp4"):
        weight = torch.randint(-128, 128, (rows, columns // 2), dtype=torch.int8)
        shape = (rows, columns // 32)
    else:
        weight = torch.randint(0, 120, (rows, columns), dtype=torch.uint8).view(torch.float8_e4m3fn)
        shape = (-(-rows // 128), -(-columns // 128))
    return weight, torch.randint(_LEAST_SCALE[kind], 128, shape, dtype=torch.uint8).view(torch.float8_e8m0fnu)


def copies(tensors: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    size = sum(t.nbytes for t in tensors)
    return [tuple(t.clone() for t in tensors) for _ in range(max(2, _COLD_BYTES // size))]


def rate(call: Callable[..., object], sets: list[tuple[Tensor, ...]]) -> float:
    """GB/s over a short while; call(*sets[i]) reads all bytes of sets[i]."""
    size = sum(t.nbytes for t in sets[0])
    begin = time.perf_counter()
    calls = 0
    while time.perf_counter() - begin < _SECONDS_A_MEASUREMENT:
        call(*sets[calls % len(sets)])
        calls += 1
    return calls * size / (time.perf_counter() - begin) / 1e9


def fast_rate(isa: str, x: Tensor, sets: list[tuple[Tensor, ...]]) -> float:
    """GB/s of the products of x with stored matrices as `fast` numerics round it on one instruction set."""
    from fourfold.kernels.cpu import ops

    before = ops.native.isa()
    ops.native.use_isa(isa)
    try:
        rounding = ops.fp4_input() if sets[0][0].dtype is torch.int8 else Rounding.BF16
        return rate(lambda weight, scale: ops.linear(x, weight, scale, rounding), sets)
    finally:
        ops.native.use_isa(before)


def contestants(rows: int, columns: int) -> dict[str, Callable[[], float]]:
    """Name -> one measurement in GB/s."""
    found: dict[str, Callable[[], float]] = {}
    x = {n: torch.randn(n, columns) for n in (1, 4, 16)}
    found["plain read"] = partial(rate, torch.sum, [(torch.randn(_COLD_BYTES // 4),)])
    for kind in _LEAST_SCALE:
        stored = copies(packed(kind, rows, columns))
        if cpu.available():
            from fourfold.kernels.cpu import ops

            for n, v in x.items():
                found[f"{kind} native, rows of x: {n}"] = partial(rate, partial(ops.linear, v), stored)
                for isa in ops.native.supported_isas():
                    found[f"{kind} fast {isa}, rows of x: {n}"] = partial(fast_rate, isa, v, stored)
        found[f"{kind} reference, rows of x: 1"] = partial(rate, partial(reference.linear, x[1]), stored)
    half = copies((torch.randn(rows, columns).to(torch.bfloat16),))
    token = x[1].to(torch.bfloat16)
    found["bf16 torch, rows of x: 1"] = partial(rate, partial(torch.nn.functional.linear, token), half)
    return found


def commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    options = parser.parse_args()
    best: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        kinds = contestants(options.rows, options.columns)
        for threads in dict.fromkeys(options.threads):
            torch.set_num_threads(threads)
            if cpu.native is not None:
                cpu.native.set_threads(threads)
            for _ in range(options.rounds):
                for name, measure in kinds.items():
                    rates = best.setdefault(name, {})
                    rates[str(threads)] = max(rates.get(str(threads), 0.0), measure())
    print(f"{'GB/s of stored bytes':34}" + "".join(f"{t:>6} thr" for t in dict.fromkeys(options.threads)))
    for name, rates in best.items():
        print(f"{name:34}" + "".join(f"{value:10.1f}" for value in rates.values()))
    document = {
        "question": "gemv",
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "isa": cpu.describe()["isa"],
        "torch": torch.__version__,
        "commit": commit(),
        "command": " ".join(["python", *sys.argv]),
        "note": options.note,
        "shape": [options.rows, options.columns],
        "gb_per_s": {k: {t: round(v, 2) for t, v in r.items()} for k, r in best.items()},
    }
    print(json.dumps(document))
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
