"""bench/long_context.py at lengths that take no time."""

from __future__ import annotations

import pytest

import fourfold
from bench.agent_trace import lengthened
from bench.long_context import decode, plot, retrieval

SMALL = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "head_dim": 64,
    "qk_rope_head_dim": 32,
    "q_lora_rank": 64,
    "o_groups": 2,
    "o_lora_rank": 64,
    "moe_intermediate_size": 64,
    "index_n_heads": 4,
    "index_head_dim": 32,
}


def test_a_prompt_beyond_the_training_has_the_same_bits_on_both_paths():
    with lengthened(fourfold.shipped_model(), 4000) as folder:
        result = retrieval(fourfold.load(folder, numerics="fast"), 2200)
    assert result["tokens"] == 2200
    assert result["same_bits"]
    assert result["same_tokens"]
    assert result["fact_is_seen"]


def test_cost_and_memory_over_the_length(tmp_path):
    document = {"processor": "a processor"} | decode(tmp_path / "slice", 16384, SMALL)
    short, long = document["rows"]
    assert (short["tokens"], long["tokens"]) == (4096, 16384)
    assert long["read_bytes"] > short["read_bytes"]
    assert long["planned_bytes"] == pytest.approx(4 * short["planned_bytes"], rel=0.3)
    assert long["token_seconds"] > 0
    plot(document, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
