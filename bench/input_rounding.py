"""How exact are roundings of the inputs of FP4 weights?  Those that `fast` numerics make, and others.

    python -m bench.input_rounding [FOLDER ...] [--tokens 1024] [--out results.json]

For each checkpoint (by default the one that ships) and rounding: mean KL(exact ‖ fast) in nats over the
tokens of one sequence, and the share of equal first choices.  First rows: `fast` as it is on each
instruction set of this machine.  In the others its routed experts are emulated: inputs rounded by the row's
rule and products in float32, which stands for exact sums.
`mini` of docs/conformance.md is

    fourfold synth mini --layers 8 --experts 32 --hidden 1024 --set vocab_size=16384 \\
        --set num_attention_heads=16 --set q_lora_rank=256 --set o_groups=4 --set o_lora_rank=512 \\
        --set index_n_heads=16 --set index_topk=128 --set moe_intermediate_size=512 --set num_hash_layers=2 \\
        --set num_nextn_predict_layers=0 --set 'compress_ratios=[0,0,4,128,4,128,4,128]'
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fourfold
from bench.gemv import commit
from fourfold import kernels
from fourfold.conformance.logits import Distance, distance
from fourfold.conformance.passage import passage_ids
from fourfold.kernels import cpu, reference
from fourfold.kernels.cpu.processor import processor
from fourfold.kernels.formats import Rounding, is_integer, round_input, to_int8

Round = Callable[[Tensor], Tensor]


def int8(x: Tensor, group: int) -> Tensor:
    """x [..., I] as whole numbers up to 127 times amax / 127 of each `group` values along I."""
    codes, scale = to_int8(x.unflatten(-1, (-1, min(group, x.shape[-1]))))
    return (codes * scale).flatten(-2)


@dataclass(frozen=True)
class Rule:
    """How inputs of w1 and w3, and of w2, are rounded; shared: in the shared expert, too."""

    first: Round
    second: Round
    shared: bool = False

    def covers(self, weight: Tensor, scale: Tensor | None) -> bool:
        """Whether experts of these weights follow the rule."""
        fp4 = weight.dtype == torch.int8 and not is_integer(weight, scale)
        return fp4 or (self.shared and weight.dtype == torch.float8_e4m3fn)

    def watch(self, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`experts` by this rule, for `kernels.observed`."""

        def experts(
            x: Tensor, indices: Tensor, weights: Tensor, w1: Tensor, s1: Tensor | None, *rest: Any
        ) -> Tensor:
            if not self.covers(w1, s1):
                return run(x, indices, weights, w1, s1, *rest)
            rounds = cycle(
                (self.first, self.first, self.second)
            )  # gate, up, down of one expert after the other

            def product(rows: Tensor, weight: Tensor, scale: Tensor | None, _: Rounding) -> Tensor:
                return reference.linear(next(rounds)(rows), weight, scale)

            return reference.experts_by(product, x, indices, weights, w1, s1, *rest)

        return experts


_BF16, _INT16, _BY_32 = (
    partial(round_input, rounding=r) for r in (Rounding.BF16, Rounding.INT16_GROUPS, Rounding.INT8_GROUPS)
)
_BY_128, _BY_512, _BY_TOKEN = (partial(int8, group=group) for group in (128, 512, 1 << 30))
RULES = {
    "16 bits, groups of 512": Rule(_INT16, _INT16),
    "bf16": Rule(_BF16, _BF16),
    "int8, groups of 512": Rule(_BY_512, _BY_512),
    "int8, groups of 512; 16 bits for w2": Rule(_BY_512, _INT16),
    "int8, groups of 32": Rule(_BY_32, _BY_32),
    "int8, groups of 128": Rule(_BY_128, _BY_128),
    "int8, one scale a token": Rule(_BY_TOKEN, _BY_TOKEN),
    "int8, groups of 32, shared expert too": Rule(_BY_32, _BY_32, shared=True),
}


def instruction_sets() -> list[str]:
    """Those whose kernels run here, but for the slow one that all processors have."""
    return [] if cpu.native is None else [isa for isa in cpu.native.supported_isas() if isa != "scalar"]


@contextmanager
def running_on(isa: str) -> Iterator[None]:
    """For the length of a `with`, native kernels of one instruction set."""
    assert cpu.native is not None
    before = cpu.native.isa()
    cpu.native.use_isa(isa)
    try:
        yield
    finally:
        cpu.native.use_isa(before)


def measure(folder: Path, tokens: int) -> dict[str, Distance]:
    """By rounding, how far `fast` is from `exact`."""
    with torch.no_grad():
        model = fourfold.load(folder)
        ids = passage_ids(model, tokens, tokens)
        exact = model(ids).logits
        found = {}
        for isa in instruction_sets():
            with running_on(isa):  # a model keeps the roundings that it began with
                found[f"fast on {isa}"] = distance(fourfold.load(folder, numerics="fast")(ids).logits, exact)
        model = fourfold.load(folder, numerics="fast")
        for name, rule in RULES.items():
            with kernels.observed("cpu", {"experts": rule.watch}):
                found[name] = distance(model(ids).logits, exact)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*", default=[fourfold.shipped_model()])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    options = parser.parse_args()
    rows = []
    for folder in options.folders:
        for name, found in measure(folder, options.tokens).items():
            print(f"{folder.name:16}{name:40}{found.kl:10.5f}{found.same_choice:8.1%}", flush=True)
            rows.append(
                {
                    "model": folder.name,
                    "rounding": name,
                    "kl_nats": found.kl,
                    "kl_nats_largest": found.kl_max,
                    "same_first_choice": found.same_choice,
                }
            )
    document = {
        "question": "input rounding",
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "isa": cpu.describe()["isa"],
        "torch": torch.__version__,
        "commit": commit(),
        "command": " ".join(["python", "-m", "bench.input_rounding", *sys.argv[1:]]),
        "tokens": options.tokens,
        "results": rows,
    }
    print(json.dumps(document))
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
