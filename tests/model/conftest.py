"""A tiny V4 of every layer kind, with weights loud enough that a wrong entry anywhere moves the logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fourfold.config import ModelConfig, YarnConfig
from fourfold.model.numerics import Kv
from fourfold.model.transformer import Transformer

TINY = ModelConfig(
    vocab_size=97,
    hidden_size=48,
    num_hidden_layers=5,
    num_attention_heads=4,
    head_dim=32,
    qk_rope_head_dim=8,
    q_lora_rank=24,
    o_groups=2,
    o_lora_rank=16,
    sliding_window=9,
    layer_ratios=(0, 4, 16, 4, 16),
    layer_kinds=("swa", "csa", "hca", "csa", "hca"),
    mtp_ratios=(0,),
    mtp_kinds=("swa",),
    hash_layers=(True, False, False, False, False),
    n_routed_experts=6,
    num_experts_per_tok=2,
    n_shared_experts=1,
    moe_intermediate_size=32,
    routed_scaling_factor=1.5,
    swiglu_limit=10.0,
    index_n_heads=4,
    index_head_dim=16,
    index_topk=3,
    hc_mult=4,
    hc_sinkhorn_iters=20,
    hc_eps=1e-6,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    compress_rope_theta=160000.0,
    yarn=YarnConfig(factor=16.0, original_max_position_embeddings=64, beta_fast=32.0, beta_slow=1.0),
    max_position_embeddings=1024,
    num_nextn_predict_layers=1,
    bos_token_id=0,
    eos_token_id=1,
)


def build(config: ModelConfig, numerics: str = "exact", kv: Kv | None = None) -> Transformer:
    """A random model: every parameter redrawn, so that nothing is hidden behind a zero or a one."""
    torch.manual_seed(0)
    model = Transformer(config, numerics, kv).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                spread = 0.5 if parameter.dim() < 2 else 2.0 * parameter.shape[-1] ** -0.5
                parameter.copy_(torch.randn_like(parameter) * spread + ("norm" in name))
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def tiny() -> Transformer:
    return build(TINY)


@pytest.fixture(scope="session")
def tiny_windowless_index() -> Transformer:
    """The indexer keeps everything: no selection to hide behind."""
    return build(replace(TINY, index_topk=64))


def tokens(length: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, TINY.vocab_size, (batch, length), generator=generator)
