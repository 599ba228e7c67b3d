"""What a token costs at least: bytes that decoding it must read, operations that prefilling it needs."""

from __future__ import annotations

from fourfold.config import ModelConfig
from fourfold.model.numerics import numerics as numerics_named
from fourfold.weights.inspect import CheckpointReport

PRODUCTS = {"exact": "f32", "deployed": "bf16", "fast": "bf16"}
"""Numerics -> the narrowest type that holds the factors of its products without loss."""


def decode_bytes(facts: CheckpointReport, config: ModelConfig, context: int, numerics: str) -> int:
    """Weights, scales and KV entries that one token of one sequence reads after `context` tokens."""
    return facts.bytes_per_token + kv_read_bytes(config, context, numerics)


def kv_read_bytes(config: ModelConfig, context: int, numerics: str) -> int:
    """KV entries and index keys that one token reads, in the type in which the cache keeps them."""
    kept = numerics_named(numerics)
    size = (kept.kv_dtype or kept.dtype).itemsize
    values = 0
    for kind, ratio in zip(config.layer_kinds, config.layer_ratios, strict=True):
        values += min(context + 1, config.sliding_window) * config.head_dim
        entries = context // ratio if ratio else 0
        if kind == "csa":
            values += entries * config.index_head_dim + min(entries, config.index_topk) * config.head_dim
        else:
            values += entries * config.head_dim
    return values * size


def prefill_operations(facts: CheckpointReport, config: ModelConfig) -> int:
    """Operations of a prompt's token in products with weights: two a parameter it meets, without the head.

    The head runs for the last token only; attention and the indexer come on top and grow with the context.
    """
    return 2 * (facts.parameters_active - config.vocab_size * config.hidden_size)
