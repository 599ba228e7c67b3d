"""The two spellings of config.json, read strictly into ModelConfig's values and written back.

* official: `compress_ratios`, `num_hash_layers`, `qk_rope_head_dim`, `rope_scaling`;
* newer transformers: `layer_types` + `compress_rates`, `mlp_layer_types`, `partial_rotary_factor`,
  nested `rope_parameters` {"main", "compress"}.

A mixture of both is accepted when they agree.  A key is either read, checked to have the one value that
we compute, in the short list of keys that cannot change the answer, or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
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

INTEGERS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "q_lora_rank",
    "o_groups", "o_lora_rank", "sliding_window", "n_routed_experts", "num_experts_per_tok",
    "n_shared_experts", "moe_intermediate_size", "index_n_heads", "index_head_dim", "index_topk",
    "hc_mult", "hc_sinkhorn_iters", "max_position_embeddings", "num_nextn_predict_layers",
    "bos_token_id", "eos_token_id",
)  # fmt: skip
REALS = ("routed_scaling_factor", "swiglu_limit", "hc_eps", "rms_norm_eps")
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
QUANTIZATION: dict[str, Any] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "scale_fmt": "ue8m0",
    "weight_block_size": [128, 128],
}
_QUANTIZATION_IGNORED = frozenset(("dequantize", "modules_to_not_convert"))
_YARN_INTEGERS = ("original_max_position_embeddings",)
_YARN_REALS = ("factor", "beta_fast", "beta_slow")
_MOST = 2**53  # beyond it a JSON number is not exact; no size of a model comes near


def read_config(data: Mapping[str, Any]) -> dict[str, Any]:
    """ModelConfig's values by field name (yarn as a dict or None), from the object in config.json."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"config.json must hold an object, found {type(data).__name__}")
    _check_keys(data)
    values: dict[str, Any] = {key: _integer(data, key) for key in INTEGERS}
    values |= {key: _real(data, key) for key in REALS}
    for key, least in (("num_hidden_layers", 1), ("num_nextn_predict_layers", 0)):
        require(least <= values[key] <= 10_000, key, values[key], f"{least} to 10000")
    values |= _read_rope(data, values["head_dim"])
    values |= _read_layers(data, values["num_hidden_layers"], values["num_nextn_predict_layers"])
    values["expert_dtype"] = _read_quantization(data)
    return values


def write_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of ModelConfig's values by field name: the inverse of read_config."""
    data: dict[str, Any] = {"architectures": _FIXED["architectures"], "model_type": MODEL_TYPE}
    data |= {key: values[key] for key in (*INTEGERS, *REALS)}
    data |= {key: value for key, value in _FIXED.items() if key not in data}
    data |= {key: values[key] for key in ("qk_rope_head_dim", "rope_theta", "compress_rope_theta")}
    data["rope_scaling"] = None if values["yarn"] is None else {"type": "yarn", **values["yarn"]}
    data |= _write_layers(values)
    data["torch_dtype"] = "bfloat16"
    if values["expert_dtype"] is not None:
        data["expert_dtype"] = values["expert_dtype"]
    if values["expert_dtype"] in (None, "fp4", "fp8"):
        data["quantization_config"] = dict(QUANTIZATION)
    return data


def require(condition: bool, key: str, value: object, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{key} is {value!r}; allowed: {allowed}")


def _present(data: Mapping[str, Any], key: str) -> Any:
    if key not in data:
        raise ConfigError(f"config.json lacks {key}, which the model needs; add it")
    return data[key]


def _integer(data: Mapping[str, Any], key: str) -> int:
    value = _present(data, key)
    number = isinstance(value, int) and not isinstance(value, bool)
    require(number and -_MOST < value < _MOST, key, value, "an integer")
    return int(value)


def _real(data: Mapping[str, Any], key: str) -> float:
    value = _present(data, key)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    require(number and -_MOST < value < _MOST, key, value, "a finite number")
    return float(value)


def _object(value: Any, key: str) -> Mapping[str, Any]:
    require(isinstance(value, Mapping), key, value, "an object")
    return value


def _check_fixed(data: Mapping[str, Any], fixed: Mapping[str, Any], prefix: str = "") -> None:
    for key, allowed in fixed.items():
        if key in data:
            value = data[key]
            # 0 == False in Python, but not in a config.
            same = value == allowed and isinstance(value, bool) == isinstance(allowed, bool)
            require(same, f"{prefix}{key}", value, f"{allowed!r}, the only one this version computes")


def _check_keys(data: Mapping[str, Any]) -> None:
    """model_type exactly, no unknown key, and the one supported value where there is only one."""
    model_type = _present(data, "model_type")
    # Exactly: V4.1 is another architecture, and a prefix match would load it and answer nonsense.
    only = f"{MODEL_TYPE!r} exactly (other members of the family are other architectures)"
    require(model_type == MODEL_TYPE, "model_type", model_type, only)
    unknown = sorted(data.keys() - {*INTEGERS, *REALS, *_SPELLINGS, *_FIXED} - _IGNORED)
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
    require(whole, "partial_rotary_factor", factor, f"a whole number of head_dim's {head_dim} channels")
    if "qk_rope_head_dim" in data:
        _agree("qk_rope_head_dim", _integer(data, "qk_rope_head_dim"), "partial_rotary_factor", dim)
    return dim


def _read_yarn(value: Any, key: str) -> dict[str, Any] | None:
    """`value`: rope_scaling, or rope_parameters.compress without its rope_theta."""
    scaling = dict(_object(value, key))
    spelled = {scaling.pop(name) for name in ("type", "rope_type") if isinstance(scaling.get(name), str)}
    if spelled == {"default"}:
        require(not scaling, key, sorted(scaling), "no YaRN keys when the type is 'default'")
        return None
    require(spelled == {"yarn"}, f"{key}.type", sorted(spelled), "'yarn' or 'default'")
    _check_fixed(scaling, {"attention_factor": 1.0}, f"{key}.")
    scaling.pop("attention_factor", None)
    names = (*_YARN_INTEGERS, *_YARN_REALS)
    if unknown := sorted(scaling.keys() - set(names)):
        raise ConfigError(f"{key} has keys this version does not know: {', '.join(unknown)}")
    if missing := [name for name in names if name not in scaling]:
        raise ConfigError(f"{key} lacks {', '.join(missing)}; YaRN needs all of {', '.join(names)}")
    values: dict[str, Any] = {name: _integer(scaling, name) for name in _YARN_INTEGERS}
    return values | {name: _real(scaling, name) for name in _YARN_REALS}


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
    parts = sorted(parameters)
    require(parts == ["compress", "main"], "rope_parameters", parts, "an object of 'main' and 'compress'")
    thetas, yarns = {}, {}
    for part, key in (("main", "rope_theta"), ("compress", "compress_rope_theta")):
        where = f"rope_parameters.{part}"
        values = dict(_object(parameters[part], where))
        thetas[key] = _real(values, "rope_theta")
        values.pop("rope_theta")
        if values.get("partial_rotary_factor") is not None:
            factor = _real(values, "partial_rotary_factor")
            _agree(f"{where}.partial_rotary_factor", round(factor * head_dim), "the RoPE width", dim)
        values.pop("partial_rotary_factor", None)
        if key in data:
            _agree(key, _real(data, key), where, thetas[key])
        yarns[part] = _read_yarn(values, where)
    require(yarns["main"] is None, "rope_parameters.main", parameters["main"], "rope_type 'default'")
    if data.get("rope_scaling") is not None:
        old = _read_yarn(data["rope_scaling"], "rope_scaling")
        _agree("rope_scaling", old, "rope_parameters.compress", yarns["compress"])
    return {"qk_rope_head_dim": dim, "yarn": yarns["compress"], **thetas}


def _list(data: Mapping[str, Any], key: str, lengths: tuple[int, ...], allowed: tuple[Any, ...]) -> list[Any]:
    values = _present(data, key)
    require(isinstance(values, (list, tuple)), key, values, "a list")
    found, wanted = len(values), " or ".join(map(str, dict.fromkeys(lengths)))
    if found not in lengths:
        raise ConfigError(f"{key} has {found} entries; allowed: {wanted} (one a layer)")
    for i, value in enumerate(values):
        require(value in allowed and not isinstance(value, bool), f"{key}[{i}]", value, f"one of {allowed}")
    return list(values)


def _read_rates(data: Mapping[str, Any]) -> dict[str, int]:
    """Tokens per compressed entry by kind; "swa" has none."""
    rates = _object(_present(data, "compress_rates"), "compress_rates")
    if unknown := sorted(rates.keys() - _LAYER_TYPES.keys()):
        raise ConfigError(f"compress_rates has keys this version does not know: {', '.join(unknown)}")
    return PUBLISHED_RATES | {_LAYER_TYPES[key]: _integer(rates, key) for key in rates}


def _read_layers(data: Mapping[str, Any], layers: int, extra: int) -> dict[str, Any]:
    """Ratio, kind and routing of each of the `layers` main and `extra` MTP blocks, from either spelling."""
    newer = data.get("layer_types") is not None
    rates = _read_rates(data) if newer or data.get("compress_rates") is not None else PUBLISHED_RATES
    if newer:
        kinds = [_LAYER_TYPES[t] for t in _list(data, "layer_types", (layers,), tuple(_LAYER_TYPES))]
    if not newer or data.get("compress_ratios") is not None:
        by_ratio = {ratio: kind for kind, ratio in PUBLISHED_RATES.items()}
        ratios = _list(data, "compress_ratios", (layers, layers + extra), tuple(by_ratio))
        require(not any(ratios[layers:]), "compress_ratios", ratios[layers:], "0 for MTP blocks")
        ratios = ratios[:layers]
        said = [by_ratio[ratio] for ratio in ratios]
        if newer:
            _agree("compress_ratios", said, "layer_types", kinds)
        _agree("compress_ratios", ratios, "compress_rates", [rates[kind] for kind in said])
        kinds = said
    return {
        "layer_kinds": tuple(kinds),
        "layer_ratios": tuple(rates[kind] for kind in kinds),
        "mtp_kinds": ("swa",) * extra,
        "mtp_ratios": (0,) * extra,
        "hash_layers": _read_hash_layers(data, layers),
    }


def _read_hash_layers(data: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    prefix: tuple[bool, ...] | None = None
    if data.get("mlp_layer_types") is None or data.get("num_hash_layers") is not None:
        count = _integer(data, "num_hash_layers")
        require(0 <= count <= layers, "num_hash_layers", count, f"0 to num_hidden_layers, {layers}")
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
        known = {*QUANTIZATION, *_QUANTIZATION_IGNORED, "expert_dtype"}
        if unknown := sorted(quantization.keys() - known):
            raise ConfigError(f"unknown keys in quantization_config: {', '.join(unknown)}")
        _check_fixed(quantization, QUANTIZATION, "quantization_config.")
        inner = quantization.get("expert_dtype")
        if inner is not None and expert_dtype is not None:
            _agree("expert_dtype", expert_dtype, "quantization_config.expert_dtype", inner)
        expert_dtype = expert_dtype if inner is None else inner
    require(expert_dtype in (None, *EXPERT_DTYPES), "expert_dtype", expert_dtype, f"one of {EXPERT_DTYPES}")
    return expert_dtype


def _write_layers(values: Mapping[str, Any]) -> dict[str, Any]:
    """compress_ratios and num_hash_layers where they can say it, the newer keys where they cannot."""
    kinds, ratios = values["layer_kinds"], values["layer_ratios"]
    data: dict[str, Any] = {}
    if all(PUBLISHED_RATES[kind] == ratio for kind, ratio in zip(kinds, ratios, strict=True)):
        data["compress_ratios"] = [*ratios, *values["mtp_ratios"]]
    else:
        names = {kind: name for name, kind in _LAYER_TYPES.items()}
        data["layer_types"] = [names[kind] for kind in kinds]
        rates = zip(kinds, ratios, strict=True)
        data["compress_rates"] = {names[kind]: ratio for kind, ratio in rates if kind != "swa"}
    hashed = values["hash_layers"]
    if all(hashed[: sum(hashed)]):
        data["num_hash_layers"] = sum(hashed)
    else:
        data["mlp_layer_types"] = ["hash_moe" if routed_by_id else "moe" for routed_by_id in hashed]
    return data
