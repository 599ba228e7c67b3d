"""ModelConfig: every number of a V4 model, read strictly from its config.json.

Two spellings are accepted, and a mixture of both when they agree:

* official: `compress_ratios`, `num_hash_layers`, `qk_rope_head_dim`, `rope_scaling`;
* newer transformers: `layer_types` + `compress_rates`, `mlp_layer_types`, `partial_rotary_factor`,
  nested `rope_parameters` {"main", "compress"}.

A key is either read, checked to have the one value that we compute, in the short list of keys that
cannot change the answer, or refused.  No number of the model has a default here.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourfold.errors import ConfigError

MODEL_TYPE = "deepseek_v4"
KINDS = ("swa", "csa", "hca")
EXPERT_DTYPES = ("fp4", "fp8", "bf16", "f32")
PUBLISHED_RATES = {"swa": 0, "csa": 4, "hca": 128}

_LAYER_TYPES = {
    "sliding_attention": "swa",
    "compressed_sparse_attention": "csa",
    "heavily_compressed_attention": "hca",
}
_MLP_TYPES = {"hash_moe": True, "moe": False}

_INTEGERS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "q_lora_rank",
    "o_groups", "o_lora_rank", "sliding_window", "n_routed_experts", "num_experts_per_tok",
    "n_shared_experts", "moe_intermediate_size", "index_n_heads", "index_head_dim", "index_topk",
    "hc_mult", "hc_sinkhorn_iters", "max_position_embeddings", "num_nextn_predict_layers",
    "bos_token_id", "eos_token_id",
)  # fmt: skip
_REALS = ("routed_scaling_factor", "swiglu_limit", "hc_eps", "rms_norm_eps")
_SPELLINGS = (
    "qk_rope_head_dim", "partial_rotary_factor", "compress_ratios", "layer_types", "compress_rates",
    "num_hash_layers", "mlp_layer_types", "rope_theta", "compress_rope_theta", "rope_scaling",
    "rope_parameters", "expert_dtype", "quantization_config", "model_type",
)  # fmt: skip
# Keys that could change the answer, each with the only value that we compute.
_FIXED: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "mlp_bias": False,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_key_value_heads": 1,
    "router_jitter_noise": 0.0,
    "scoring_func": "sqrtsoftplus",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
}
# Keys that cannot change what the stored weights compute.
_IGNORED = frozenset(
    (
        "_name_or_path", "chunk_size_feed_forward", "dtype", "id2label", "initializer_range",
        "is_encoder_decoder", "label2id", "output_attentions", "output_hidden_states",
        "output_router_logits", "pad_token_id", "problem_type", "return_dict", "router_aux_loss_coef",
        "torch_dtype", "transformers_version", "use_cache",
    )
)  # fmt: skip
_QUANTIZATION_FIXED: dict[str, Any] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "scale_fmt": "ue8m0",
    "weight_block_size": [128, 128],
}
_QUANTIZATION_IGNORED = frozenset(("dequantize", "modules_to_not_convert"))


@dataclass(frozen=True, kw_only=True)
class YarnConfig:
    """YaRN of the compressed layers; cos and sin are not scaled (no mscale)."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float

    def __post_init__(self) -> None:
        _require(self.factor >= 1, "rope_scaling.factor", self.factor, "a number of at least 1")
        original = self.original_max_position_embeddings
        _require(original >= 1, "rope_scaling.original_max_position_embeddings", original, "at least 1")
        ordered = 0 < self.beta_slow < self.beta_fast
        betas = (self.beta_fast, self.beta_slow)
        _require(ordered, "rope_scaling.beta_fast, beta_slow", betas, "beta_fast above beta_slow above 0")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A V4 model.  Names are config.json's; per-layer facts are spelled out as tuples.

    layer_ratios, layer_kinds: of the num_hidden_layers main blocks.  Ratio 0 and kind "swa" mean sliding
    window only, otherwise the ratio is m; "csa" has the overlapping compressor and the indexer, "hca"
    the plain compressor.  mtp_ratios, mtp_kinds: the same for the num_nextn_predict_layers MTP blocks.
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
        """Build from the object in config.json.  Raises ConfigError naming the key, its value and what is allowed."""
        if not isinstance(data, Mapping):
            raise ConfigError(f"config.json must hold an object, found {type(data).__name__}")
        _check_keys(data)
        values: dict[str, Any] = {key: _integer(data, key) for key in _INTEGERS}
        values |= {key: _real(data, key) for key in _REALS}
        values |= _read_rope(data, values["head_dim"])
        values |= _read_layers(data, values["num_hidden_layers"], values["num_nextn_predict_layers"])
        return cls(**values, expert_dtype=_read_quantization(data))

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Read `path`, a config.json or the folder that holds one."""
        path = Path(path)
        file = path / "config.json" if path.is_dir() else path
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ConfigError(f"{file}: cannot read the model's config.json ({reason})") from error
        except ValueError as error:
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
        data: dict[str, Any] = {"architectures": _FIXED["architectures"], "model_type": MODEL_TYPE}
        data |= {key: getattr(self, key) for key in (*_INTEGERS, *_REALS)}
        data |= {key: value for key, value in _FIXED.items() if key not in data}
        data |= {"qk_rope_head_dim": self.qk_rope_head_dim, "torch_dtype": "bfloat16"}
        data |= {"rope_theta": self.rope_theta, "compress_rope_theta": self.compress_rope_theta}
        data["rope_scaling"] = (
            None if self.yarn is None else {"type": "yarn", **dataclasses.asdict(self.yarn)}
        )
        data |= _write_layers(self)
        if self.expert_dtype is not None:
            data["expert_dtype"] = self.expert_dtype
        if self.expert_dtype in (None, "fp4", "fp8"):
            data["quantization_config"] = dict(_QUANTIZATION_FIXED)
        return data


def _require(condition: bool, key: str, value: object, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{key} is {value!r}; allowed: {allowed}")


def _present(data: Mapping[str, Any], key: str) -> Any:
    if key not in data:
        raise ConfigError(f"config.json lacks {key}, which the model needs; add it")
    return data[key]


def _integer(data: Mapping[str, Any], key: str) -> int:
    value = _present(data, key)
    _require(isinstance(value, int) and not isinstance(value, bool), key, value, "an integer")
    return int(value)


def _real(data: Mapping[str, Any], key: str) -> float:
    value = _present(data, key)
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    _require(number, key, value, "a finite number")
    return float(value)


def _object(value: Any, key: str) -> Mapping[str, Any]:
    _require(isinstance(value, Mapping), key, value, "an object")
    return value  # type: ignore[no-any-return]


def _check_fixed(data: Mapping[str, Any], fixed: Mapping[str, Any], prefix: str = "") -> None:
    for key, allowed in fixed.items():
        if key in data:
            value = data[key]
            # 0 == False in Python, but not in a config.
            same = value == allowed and isinstance(value, bool) == isinstance(allowed, bool)
            _require(same, f"{prefix}{key}", value, f"{allowed!r}, the only one this version computes")


def _check_keys(data: Mapping[str, Any]) -> None:
    """model_type exactly, no unknown key, and the one supported value where there is only one."""
    model_type = _present(data, "model_type")
    # Exactly: V4.1 is another architecture, and a prefix match would load it and answer nonsense.
    only = f"{MODEL_TYPE!r} exactly (other members of the family are other architectures)"
    _require(model_type == MODEL_TYPE, "model_type", model_type, only)
    unknown = sorted(data.keys() - {*_INTEGERS, *_REALS, *_SPELLINGS, *_FIXED} - _IGNORED)
    if any(key.startswith("dspark") for key in unknown):
        raise ConfigError(f"this checkpoint has a DSpark draft module, not plain MTP: {', '.join(unknown)}")
    if unknown:
        raise ConfigError(f"config.json has keys this version does not know: {', '.join(unknown)}")
    _check_fixed(data, _FIXED)


def _agree(key: str, value: Any, other: str, other_value: Any) -> None:
    if value != other_value:
        raise ConfigError(f"{key} is {value!r} but {other} says {other_value!r}; they must agree, keep one")


def _read_rope_dim(data: Mapping[str, Any], head_dim: int) -> int:
    if data.get("partial_rotary_factor") is None:
        return _integer(data, "qk_rope_head_dim")
    factor = _real(data, "partial_rotary_factor")
    dim = round(factor * head_dim)
    whole = abs(dim - factor * head_dim) < 1e-6
    _require(whole, "partial_rotary_factor", factor, f"a whole number of head_dim's {head_dim} channels")
    if "qk_rope_head_dim" in data:
        _agree("qk_rope_head_dim", _integer(data, "qk_rope_head_dim"), "partial_rotary_factor", dim)
    return dim


def _read_yarn(value: Any, key: str) -> YarnConfig | None:
    """`value`: rope_scaling, or rope_parameters.compress without its rope_theta."""
    scaling = dict(_object(value, key))
    spelled = {scaling.pop(name) for name in ("type", "rope_type") if isinstance(scaling.get(name), str)}
    if spelled == {"default"}:
        _require(not scaling, key, sorted(scaling), "no YaRN keys when the type is 'default'")
        return None
    _require(spelled == {"yarn"}, f"{key}.type", sorted(spelled), "'yarn' or 'default'")
    _check_fixed(scaling, {"attention_factor": 1.0}, f"{key}.")
    scaling.pop("attention_factor", None)
    names = [field.name for field in dataclasses.fields(YarnConfig)]
    if unknown := sorted(scaling.keys() - set(names)):
        raise ConfigError(f"{key} has keys this version does not know: {', '.join(unknown)}")
    if missing := [name for name in names if name not in scaling]:
        raise ConfigError(f"{key} lacks {', '.join(missing)}; YaRN needs all of {', '.join(names)}")
    return YarnConfig(
        factor=_real(scaling, "factor"),
        original_max_position_embeddings=_integer(scaling, "original_max_position_embeddings"),
        beta_fast=_real(scaling, "beta_fast"),
        beta_slow=_real(scaling, "beta_slow"),
    )


def _read_rope(data: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """qk_rope_head_dim, both thetas and YaRN, from either spelling."""
    dim = _read_rope_dim(data, head_dim)
    if data.get("rope_parameters") is None:
        if "rope_scaling" not in data:
            raise ConfigError("config.json lacks rope_scaling (or rope_parameters); write null for no YaRN")
        scaling = data["rope_scaling"]
        yarn = None if scaling is None else _read_yarn(scaling, "rope_scaling")
        thetas = {key: _real(data, key) for key in ("rope_theta", "compress_rope_theta")}
        return {"qk_rope_head_dim": dim, "yarn": yarn, **thetas}
    parameters = _object(data["rope_parameters"], "rope_parameters")
    _require(
        parameters.keys() == {"main", "compress"},
        "rope_parameters",
        dict(parameters),
        "'main' and 'compress'",
    )
    thetas, yarns = {}, {}
    for part, key in (("main", "rope_theta"), ("compress", "compress_rope_theta")):
        where = f"rope_parameters.{part}"
        values = dict(_object(parameters[part], where))
        thetas[key] = _real(values, "rope_theta")
        values.pop("rope_theta")
        if (factor := values.pop("partial_rotary_factor", None)) is not None:
            _agree(f"{where}.partial_rotary_factor", factor, "the RoPE width", dim / head_dim)
        if key in data:
            _agree(key, _real(data, key), where, thetas[key])
        yarns[part] = _read_yarn(values, where)
    _require(yarns["main"] is None, "rope_parameters.main", parameters["main"], "rope_type 'default'")
    if data.get("rope_scaling") is not None:
        old = _read_yarn(data["rope_scaling"], "rope_scaling")
        _agree("rope_scaling", old, "rope_parameters.compress", yarns["compress"])
    return {"qk_rope_head_dim": dim, "yarn": yarns["compress"], **thetas}


def _list(data: Mapping[str, Any], key: str, lengths: tuple[int, ...], allowed: tuple[Any, ...]) -> list[Any]:
    values = _present(data, key)
    _require(isinstance(values, (list, tuple)), key, values, "a list")
    found, wanted = len(values), " or ".join(map(str, dict.fromkeys(lengths)))
    if found not in lengths:
        raise ConfigError(f"{key} has {found} entries; allowed: {wanted} (one a layer)")
    for i, value in enumerate(values):
        _require(value in allowed and not isinstance(value, bool), f"{key}[{i}]", value, f"one of {allowed}")
    return list(values)


def _read_rates(data: Mapping[str, Any]) -> dict[str, int]:
    """Tokens per compressed entry by kind; "swa" has none."""
    rates = _object(_present(data, "compress_rates"), "compress_rates")
    if unknown := sorted(rates.keys() - _LAYER_TYPES.keys()):
        raise ConfigError(f"compress_rates has keys this version does not know: {', '.join(unknown)}")
    return {"swa": 0} | {_LAYER_TYPES[key]: _integer(rates, key) for key in rates}


def _read_layers(data: Mapping[str, Any], layers: int, extra: int) -> dict[str, Any]:
    """Ratio, kind and routing of each of the `layers` main and `extra` MTP blocks, from either spelling."""
    kinds: list[str] | None = None
    rates = PUBLISHED_RATES
    if data.get("layer_types") is not None:
        names = _list(data, "layer_types", (layers,), tuple(_LAYER_TYPES))
        kinds, rates = [_LAYER_TYPES[name] for name in names], _read_rates(data)
        if absent := sorted(set(kinds) - rates.keys()):
            raise ConfigError(f"compress_rates says nothing for layers of kind {', '.join(absent)}")
    mtp = ["swa"] * extra
    if kinds is None or data.get("compress_ratios") is not None:
        lengths = (layers, layers + extra)
        by_ratio = {ratio: kind for kind, ratio in PUBLISHED_RATES.items()}
        ratios = _list(data, "compress_ratios", lengths, tuple(by_ratio))
        main = [by_ratio[ratio] for ratio in ratios[:layers]]
        if kinds is not None:
            _agree("compress_ratios", main, "layer_types", kinds)
            _agree("compress_ratios", ratios[:layers], "compress_rates", [rates[kind] for kind in kinds])
        kinds, mtp = main, [by_ratio[ratio] for ratio in ratios[layers:]] or mtp
    return {
        "layer_kinds": tuple(kinds),
        "layer_ratios": tuple(rates[kind] for kind in kinds),
        "mtp_kinds": tuple(mtp),
        "mtp_ratios": tuple(rates.get(kind, 0) for kind in mtp),
        "hash_layers": _read_hash_layers(data, layers),
    }


def _read_hash_layers(data: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    prefix: tuple[bool, ...] | None = None
    if data.get("mlp_layer_types") is None or data.get("num_hash_layers") is not None:
        count = _integer(data, "num_hash_layers")
        _require(0 <= count <= layers, "num_hash_layers", count, f"0 to num_hidden_layers, {layers}")
        prefix = tuple(i < count for i in range(layers))
    if data.get("mlp_layer_types") is None:
        assert prefix is not None
        return prefix
    names = _list(data, "mlp_layer_types", (layers,), tuple(_MLP_TYPES))
    hashed = tuple(_MLP_TYPES[name] for name in names)
    if prefix is not None:
        _agree("num_hash_layers", prefix, "mlp_layer_types", hashed)
    return hashed


def _read_quantization(data: Mapping[str, Any]) -> str | None:
    """The routed experts' storage type, after checking quantization_config."""
    expert_dtype = data.get("expert_dtype")
    if data.get("quantization_config") is not None:
        quantization = _object(data["quantization_config"], "quantization_config")
        known = {*_QUANTIZATION_FIXED, *_QUANTIZATION_IGNORED, "expert_dtype"}
        if unknown := sorted(quantization.keys() - known):
            raise ConfigError(
                f"quantization_config has keys this version does not know: {', '.join(unknown)}"
            )
        _check_fixed(quantization, _QUANTIZATION_FIXED, "quantization_config.")
        inner = quantization.get("expert_dtype")
        if inner is not None and expert_dtype is not None:
            _agree("expert_dtype", expert_dtype, "quantization_config.expert_dtype", inner)
        expert_dtype = expert_dtype if inner is None else inner
    _require(
        expert_dtype is None or expert_dtype in EXPERT_DTYPES,
        "expert_dtype",
        expert_dtype,
        f"{EXPERT_DTYPES}",
    )
    return expert_dtype


def _write_layers(config: ModelConfig) -> dict[str, Any]:
    ratios = (*config.layer_ratios, *config.mtp_ratios)
    kinds = (*config.layer_kinds, *config.mtp_kinds)
    data: dict[str, Any] = {}
    if all(PUBLISHED_RATES[kind] == ratio for kind, ratio in zip(kinds, ratios, strict=True)):
        data["compress_ratios"] = list(ratios)
    else:
        names = {kind: name for name, kind in _LAYER_TYPES.items()}
        rates = dict(zip(config.layer_kinds, config.layer_ratios, strict=True))
        data["layer_types"] = [names[kind] for kind in config.layer_kinds]
        data["compress_rates"] = {names[kind]: rate for kind, rate in rates.items() if kind != "swa"}
    count = sum(config.hash_layers)
    if all(config.hash_layers[:count]):
        data["num_hash_layers"] = count
    else:
        data["mlp_layer_types"] = ["hash_moe" if hashed else "moe" for hashed in config.hash_layers]
    return data


def _check_ranges(config: ModelConfig) -> None:
    may_be_zero = {"num_nextn_predict_layers", "bos_token_id", "eos_token_id"}
    for key in (*_INTEGERS, "qk_rope_head_dim"):
        least = 0 if key in may_be_zero else 1
        _require(getattr(config, key) >= least, key, getattr(config, key), f"{least} or more")
    for key in (*_REALS, "rope_theta", "compress_rope_theta"):
        _require(getattr(config, key) > 0, key, getattr(config, key), "a number above 0")
    for key in ("bos_token_id", "eos_token_id"):
        value = getattr(config, key)
        _require(value < config.vocab_size, key, value, f"below vocab_size, {config.vocab_size}")
    heads, rope, index = config.num_attention_heads, config.qk_rope_head_dim, config.index_head_dim
    _require(
        heads % config.o_groups == 0,
        "o_groups",
        config.o_groups,
        f"a divisor of num_attention_heads, {heads}",
    )
    _require(rope % 2 == 0, "qk_rope_head_dim", rope, "an even number (RoPE turns pairs)")
    _require(rope <= config.head_dim, "qk_rope_head_dim", rope, f"at most head_dim, {config.head_dim}")
    # The indexer multiplies by a Sylvester Hadamard matrix, which exists for powers of two only.
    _require(index & (index - 1) == 0, "index_head_dim", index, "a power of two")
    _require(rope <= index, "index_head_dim", index, f"at least qk_rope_head_dim, {rope}")
    experts, chosen = config.n_routed_experts, config.num_experts_per_tok
    _require(chosen <= experts, "num_experts_per_tok", chosen, f"at most n_routed_experts, {experts}")
    _require(
        config.expert_dtype in (None, *EXPERT_DTYPES), "expert_dtype", config.expert_dtype, f"{EXPERT_DTYPES}"
    )
    _require(
        config.weight_block_size == (128, 128), "weight_block_size", config.weight_block_size, "(128, 128)"
    )
    _check_fixed({"n_shared_experts": config.n_shared_experts}, {"n_shared_experts": 1})


def _check_layers(config: ModelConfig) -> None:
    counts = {"layer": config.num_hidden_layers, "mtp": config.num_nextn_predict_layers}
    for part, count in counts.items():
        ratios, kinds = getattr(config, f"{part}_ratios"), getattr(config, f"{part}_kinds")
        _require(len(ratios) == count, f"{part}_ratios", ratios, f"{count} entries")
        _require(len(kinds) == count, f"{part}_kinds", kinds, f"{count} entries")
        for i, (kind, ratio) in enumerate(zip(kinds, ratios, strict=True)):
            _require(kind in KINDS, f"{part}_kinds[{i}]", kind, f"one of {KINDS}")
            fits = ratio == 0 if kind == "swa" else ratio >= 1
            _require(fits, f"{part}_ratios[{i}]", ratio, "0 for swa, 1 or more for csa and hca")
    for kind in KINDS[1:]:
        rates = {r for r, k in zip(config.layer_ratios, config.layer_kinds, strict=True) if k == kind}
        _require(len(rates) <= 1, f"ratios of the {kind} layers", sorted(rates), "one ratio for all of them")
    layers = config.num_hidden_layers
    _require(len(config.hash_layers) == layers, "hash_layers", config.hash_layers, f"{layers} entries")
