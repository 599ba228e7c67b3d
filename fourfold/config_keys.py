"""Which keys config.json may have: sizes with their bounds, single values, and those that change nothing.

The bounds are far above any model and far below what would hang or overflow: a config.json may come from
anywhere.
"""

from __future__ import annotations

from typing import Any

MODEL_TYPE = "deepseek_v4"
KINDS = ("swa", "csa", "hca")
EXPERT_DTYPES = ("fp4", "fp8", "int8", "int4", "bf16", "f32")
PUBLISHED_RATES = {"swa": 0, "csa": 4, "hca": 128}

LAYER_TYPES = {
    "sliding_attention": "swa",
    "compressed_sparse_attention": "csa",
    "heavily_compressed_attention": "hca",
}
MLP_TYPES = {"hash_moe": True, "moe": False}

_MOST_TOKEN_IDS = 1 << 24
INTEGERS: dict[str, tuple[int, int]] = {
    "vocab_size": (1, _MOST_TOKEN_IDS),
    "hidden_size": (1, 1 << 20),
    "num_hidden_layers": (1, 1 << 10),
    "num_attention_heads": (1, 1 << 14),
    "head_dim": (1, 1 << 16),
    "q_lora_rank": (1, 1 << 20),
    "o_groups": (1, 1 << 14),
    "o_lora_rank": (1, 1 << 20),
    "sliding_window": (1, 1 << 24),
    "n_routed_experts": (1, 1 << 16),
    "num_experts_per_tok": (1, 1 << 16),
    "n_shared_experts": (1, 1),
    "moe_intermediate_size": (1, 1 << 20),
    "index_n_heads": (1, 1 << 14),
    "index_head_dim": (1, 1 << 12),
    "index_topk": (1, 1 << 24),
    "hc_mult": (1, 1 << 6),
    "hc_sinkhorn_iters": (1, 1000),
    "max_position_embeddings": (1, 1 << 40),
    "num_nextn_predict_layers": (0, 1),
    "bos_token_id": (0, _MOST_TOKEN_IDS),
    "eos_token_id": (0, _MOST_TOKEN_IDS),
}
"""Whole numbers that every config.json has, each with the least and the most allowed."""
REALS: dict[str, tuple[float, float]] = {
    "routed_scaling_factor": (1e-6, 1e6),
    "swiglu_limit": (1e-6, 1e9),
    "hc_eps": (1e-30, 1.0),
    "rms_norm_eps": (1e-30, 1.0),
}
"""Other numbers that every config.json has, likewise."""
MOST_THETA = 1e12
MOST_RATE = 1 << 20
MOST_ROUTED_EXPERTS = 1 << 17
"""Of all layers together: each is three tensors, to be listed before anything is read."""

YARN_INTEGERS = {"original_max_position_embeddings": (1, 1 << 40)}
YARN_REALS = {"factor": (1.0, 1e6), "beta_fast": (1e-6, 1e6), "beta_slow": (1e-6, 1e6)}
YARN_FIXED = {"attention_factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
"""cos and sin are not multiplied."""

SPELLINGS = (
    "qk_rope_head_dim", "partial_rotary_factor", "compress_ratios", "layer_types", "compress_rates",
    "num_hash_layers", "mlp_layer_types", "rope_theta", "compress_rope_theta", "rope_scaling",
    "rope_parameters", "expert_dtype", "quantization_config", "model_type",
)  # fmt: skip
"""Keys of which one spelling or the other must be there."""
ALIASES = {"intermediate_size": "moe_intermediate_size", "num_local_experts": "n_routed_experts"}
RATE_ALIASES = {"compress_rate_csa": "csa", "compress_rate_hca": "hca"}
"""Second names: they may stand beside the first ones and must agree with them."""

FIXED: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "mlp_bias": False,
    "norm_topk_prob": True,
    "num_key_value_heads": 1,
    "router_jitter_noise": 0.0,
    "scoring_func": "sqrtsoftplus",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
}
"""Keys that could change the answer, each with the only value that we compute."""
NEUTRAL: dict[str, Any] = {
    "ep_size": 1,
    "first_k_dense_replace": 0,
    "moe_layer_freq": 1,
    "n_group": 1,
    "pretraining_tp": 1,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
    "topk_group": 1,
}
"""Keys of the family's other models, each with the value that asks for nothing."""
# auto_map names Python code to be run in place of the library's; no code of a checkpoint is ever run here.
IGNORED = frozenset(
    (
        "_name_or_path", "auto_map", "aux_loss_alpha", "chunk_size_feed_forward", "dtype", "id2label",
        "initializer_range", "is_encoder_decoder", "label2id", "output_attentions", "output_hidden_states",
        "output_router_logits", "pad_token_id", "problem_type", "return_dict", "router_aux_loss_coef",
        "seq_aux", "tokenizer_class", "torch_dtype", "torchscript", "transformers_version", "use_cache",
    )
)  # fmt: skip
"""Keys that cannot change what the stored weights compute."""

QUANTIZATION: dict[str, Any] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "scale_fmt": "ue8m0",
    "weight_block_size": [128, 128],
}
QUANTIZATION_IGNORED = frozenset(("dequantize", "modules_to_not_convert"))
