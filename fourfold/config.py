"""ModelConfig: every number of a V4 model, checked.

Read from config.json in either spelling (see config_json.py).  No number of the model has a default here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourfold.config_json import check_bounds, read_config, write_config
from fourfold.config_keys import (
    EXPERT_DTYPES,
    KINDS,
    MOST_RATE,
    MOST_ROUTED_EXPERTS,
    MOST_THETA,
    YARN_INTEGERS,
    YARN_REALS,
)
from fourfold.config_values import parse_json, require, require_within
from fourfold.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class YarnConfig:
    """YaRN of the compressed layers; cos and sin are not scaled (no mscale)."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float

    def __post_init__(self) -> None:
        for key, bounds in (YARN_INTEGERS | YARN_REALS).items():
            require_within(bounds, f"rope_scaling.{key}", getattr(self, key))
        betas = (self.beta_fast, self.beta_slow)
        ordered = self.beta_slow < self.beta_fast
        require(ordered, "rope_scaling.beta_fast, beta_slow", betas, "beta_fast above beta_slow")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A V4 model.  Names are config.json's; per-layer facts are spelled out as tuples.

    layer_ratios, layer_kinds: of the num_hidden_layers main blocks.  Ratio 0 and kind "swa" mean sliding
    window only, otherwise the ratio is m; "csa" has the overlapping compressor and the indexer, "hca"
    the plain compressor.  mtp_ratios, mtp_kinds: the same for the num_nextn_predict_layers MTP blocks,
    which are window-only.
    hash_layers: main blocks routed by token id (`tid2eid`).  expert_dtype: how routed experts are
    stored, None when config.json does not say.  yarn: None for plain RoPE in compressed layers.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    sliding_window: int
    layer_ratios: tuple[int, ...]
    layer_kinds: tuple[str, ...]
    mtp_ratios: tuple[int, ...]
    mtp_kinds: tuple[str, ...]
    hash_layers: tuple[bool, ...]
    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int
    moe_intermediate_size: int
    routed_scaling_factor: float
    swiglu_limit: float
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    hc_mult: int
    hc_sinkhorn_iters: int
    hc_eps: float
    rms_norm_eps: float
    rope_theta: float
    compress_rope_theta: float
    yarn: YarnConfig | None
    max_position_embeddings: int
    num_nextn_predict_layers: int
    bos_token_id: int
    eos_token_id: int
    expert_dtype: str | None = None
    weight_block_size: tuple[int, int] = (128, 128)

    def __post_init__(self) -> None:
        _check_ranges(self)
        _check_layers(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Build from the object in config.json; ConfigError names the key, its value and what is allowed."""
        values = read_config(data)
        yarn = values.pop("yarn")
        return cls(**values, yarn=None if yarn is None else YarnConfig(**yarn))

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Read `path`, a config.json or the folder that holds one."""
        path = Path(path)
        file = path / "config.json" if path.is_dir() else path
        try:
            data = parse_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ConfigError(f"{file}: cannot read the model's config.json ({reason})") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{file}: not valid JSON ({error})") from error
        try:
            return cls.from_json(data)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """The official config.json; from_json of it equals self.

        Per-layer facts that the official spelling cannot say (rates other than 4 and 128, hash layers
        that are not the first ones) are written in the newer spelling.
        """
        return write_config(dataclasses.asdict(self))


def _check_ranges(config: ModelConfig) -> None:
    check_bounds(vars(config))
    for key in ("rope_theta", "compress_rope_theta"):
        theta = getattr(config, key)
        # YaRN divides by the logarithm of theta.
        require(1 < theta <= MOST_THETA, key, theta, f"a number above 1, at most {MOST_THETA:g}")
    for key in ("bos_token_id", "eos_token_id"):
        value = getattr(config, key)
        require(value < config.vocab_size, key, value, f"below vocab_size, {config.vocab_size}")
    _check_attention(config)
    _check_experts(config)


def _check_attention(config: ModelConfig) -> None:
    heads, groups = config.num_attention_heads, config.o_groups
    require(heads % groups == 0, "o_groups", groups, f"a divisor of num_attention_heads, {heads}")
    rope, index = config.qk_rope_head_dim, config.index_head_dim
    require(rope >= 2 and rope % 2 == 0, "qk_rope_head_dim", rope, "an even number (RoPE turns pairs)")
    require(rope <= config.head_dim, "qk_rope_head_dim", rope, f"at most head_dim, {config.head_dim}")
    # The indexer multiplies by a Sylvester Hadamard matrix, which exists for powers of two only.
    require(index & (index - 1) == 0, "index_head_dim", index, "a power of two")
    require(rope <= index, "index_head_dim", index, f"at least qk_rope_head_dim, {rope}")


def _check_experts(config: ModelConfig) -> None:
    experts, chosen = config.n_routed_experts, config.num_experts_per_tok
    require(chosen <= experts, "num_experts_per_tok", chosen, f"at most n_routed_experts, {experts}")
    blocks = config.num_hidden_layers + config.num_nextn_predict_layers
    most = MOST_ROUTED_EXPERTS // blocks
    require(experts <= most, "n_routed_experts", experts, f"at most {most} with {blocks} layers")
    stored = config.expert_dtype
    require(stored in (None, *EXPERT_DTYPES), "expert_dtype", stored, f"one of {EXPERT_DTYPES}")
    block = config.weight_block_size
    require(block == (128, 128), "weight_block_size", block, "(128, 128)")


def _check_layers(config: ModelConfig) -> None:
    layers, extra = config.num_hidden_layers, config.num_nextn_predict_layers
    for key in ("layer_ratios", "layer_kinds", "hash_layers"):
        values = getattr(config, key)
        require(len(values) == layers, key, values, f"{layers} entries")
    for i, (kind, ratio) in enumerate(zip(config.layer_kinds, config.layer_ratios, strict=True)):
        require(kind in KINDS, f"layer_kinds[{i}]", kind, f"one of {KINDS}")
        bounds = (0, 0) if kind == "swa" else (1, MOST_RATE)
        require_within(bounds, f"layer_ratios[{i}] of a {kind} layer", ratio)
    require(config.mtp_kinds == ("swa",) * extra, "mtp_kinds", config.mtp_kinds, f"{('swa',) * extra}")
    require(config.mtp_ratios == (0,) * extra, "mtp_ratios", config.mtp_ratios, f"{(0,) * extra}")
    for kind in KINDS[1:]:
        rates = {r for r, k in zip(config.layer_ratios, config.layer_kinds, strict=True) if k == kind}
        require(len(rates) <= 1, f"ratios of the {kind} layers", sorted(rates), "one ratio for all of them")
