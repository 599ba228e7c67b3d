"""What training a low-rank adapter takes: the base as it is stored, the adapter's states, activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fourfold.config import ModelConfig
from fourfold.plan.demand import Demand
from fourfold.weights.adapter import LORA_TARGETS, targets

_HALF = (29.3, 3.2, 13.3, 9.6, 24.5, 80.0, 3870.0)
_WHOLE = (12.6, 8.4, 20.8, 11.9, 27.0, 60.0, 4440.0)
"""Bytes a block keeps for each of the numbers that `block_bytes` lists, in bfloat16 and in float32."""
_LOGIT_ROWS = 1024
"""Of logits that exist at once."""


@dataclass(frozen=True, kw_only=True)
class LoraMemory:
    """Bytes.  base: weights as stored; adapter: its weights, their gradients and the optimiser's states, all
    float32; activations: of one part of a step, an estimate; work: logits, and the matrix that is decoded.

    parameters: of the adapter.
    """

    parameters: int
    base: int
    adapter: int
    activations: int
    work: int

    @property
    def total(self) -> int:
        return self.base + self.adapter + self.activations + self.work

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; keys are the fields, and total."""
        return {**asdict(self), "total": self.total}

    def __str__(self) -> str:
        """needs about 9.1 GiB: base 8.0 GiB, adapter 0.3 GiB, activations 0.7 GiB, work 0.1 GiB"""
        parts = ", ".join(
            f"{name} {_gib(getattr(self, name))}" for name in ("base", "adapter", "activations", "work")
        )
        return f"needs about {_gib(self.total)}: {parts}"


def lora_memory(
    demand: Demand,
    patterns: Sequence[str] | None,
    *,
    rank: int,
    rows: int,
    length: int,
    recompute: bool,
    half: bool = True,
    copies: int = 4,
) -> LoraMemory:
    """Of a step whose parts have `rows` rows of `length` tokens.

    patterns: of the matrices, as in [lora] targets; None: LORA_TARGETS.  ConfigError: one names no matrix.
    recompute: activations within blocks are computed again; half: products and streams are bfloat16; copies:
    of the adapter's parameters: weights, gradients, and what the optimiser and averages keep.
    """
    config = demand.config
    places = targets(config, patterns or LORA_TARGETS)
    parameters = sum(place.parameters(rank) for place in places.values())
    streams = config.hc_mult * config.hidden_size * (2 if half else 4)
    layers = config.num_hidden_layers
    inside = block_bytes(config, length, rank, half=half)
    kept = streams * layers + inside if recompute else inside * layers
    largest = max(place.out * place.width for place in places.values())
    logits = min(rows * length, _LOGIT_ROWS) * config.vocab_size * 4 * 3
    return LoraMemory(
        parameters=parameters,
        base=demand.total_bytes,
        adapter=4 * parameters * copies,
        activations=rows * length * kept,
        work=logits + 4 * largest,
    )


def block_bytes(config: ModelConfig, length: int, rank: int, *, half: bool) -> int:
    """What a block keeps of one token for its backward pass, about.

    Fitted to what autograd saves of thirteen shapes, each within 5 %.
    """
    visits = config.num_experts_per_tok + 1
    factors = (
        config.hc_mult * config.hidden_size,
        visits * config.hidden_size,
        config.num_attention_heads * config.head_dim,
        config.num_attention_heads * length,  # a whole matrix of scores
        visits * config.moe_intermediate_size,
        rank,
        1,
    )
    return round(sum(a * b for a, b in zip(_HALF if half else _WHOLE, factors, strict=True)))


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
