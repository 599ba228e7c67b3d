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

from fourfold.config_keys import (
    ALIASES,
    FIXED,
    IGNORED,
    INTEGERS,
    LAYER_TYPES,
    MLP_TYPES,
    MODEL_TYPE,
    NEUTRAL,
    PUBLISHED_RATES,
    QUANTIZATION,
    RATE_ALIASES,
    REALS,
    SPELLINGS,
    YARN_FIXED,
    YARN_INTEGERS,
    YARN_REALS,
)
from fourfold.config_quantization import read_quantization
from fourfold.config_values import (
    agree,
    check_fixed,
    integer,
    json_object,
    one_a_layer,
    present,
    real,
    require,
    require_within,
)
from fourfold.errors import ConfigError


def read_config(data: Mapping[str, Any]) -> dict[str, Any]:
    """ModelConfig's values by field name (yarn as a dict or None), from the object in config.json."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"config.json must hold an object, found {type(data).__name__}")
    _check_keys(data)
    values: dict[str, Any] = {key: integer(data, key) for key in INTEGERS}
    values |= {key: real(data, key) for key in REALS}
    check_bounds(values)
    for alias, key in ALIASES.items():
        if alias in data:
            agree(alias, integer(data, alias), key, values[key])
    values |= _read_rope(data, values["head_dim"])
    values |= _read_layers(data, values["num_hidden_layers"], values["num_nextn_predict_layers"])
    values["expert_dtype"] = read_quantization(data)
    return values


def write_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of ModelConfig's values by field name: the inverse of read_config."""
    data: dict[str, Any] = {"architectures": FIXED["architectures"], "model_type": MODEL_TYPE}
    data |= {key: values[key] for key in (*INTEGERS, *REALS)}
    data |= {key: value for key, value in FIXED.items() if key not in data}
    data |= {key: values[key] for key in ("qk_rope_head_dim", "rope_theta", "compress_rope_theta")}
    data["rope_scaling"] = None if values["yarn"] is None else {"type": "yarn", **values["yarn"]}
    data |= _write_layers(values)
    data["torch_dtype"] = "bfloat16"
    if values["expert_dtype"] is not None:
        data["expert_dtype"] = values["expert_dtype"]
    if values["expert_dtype"] in (None, "fp4", "fp8"):
        data["quantization_config"] = dict(QUANTIZATION)
    return data


def check_bounds(values: Mapping[str, Any]) -> None:
    """Every INTEGERS and REALS of `values` within its bounds; ConfigError names the first that is not."""
    for key, bounds in (INTEGERS | REALS).items():
        require_within(bounds, key, values[key])


def _check_keys(data: Mapping[str, Any]) -> None:
    """model_type exactly, no unknown key, and the one supported value where there is only one."""
    model_type = present(data, "model_type")
    # Exactly: V4.1 is another architecture, and a prefix match would load it and answer nonsense.
    only = f"{MODEL_TYPE!r} exactly (other members of the family are other architectures)"
    require(model_type == MODEL_TYPE, "model_type", model_type, only)
    known = {*INTEGERS, *REALS, *SPELLINGS, *ALIASES, *RATE_ALIASES, *FIXED, *NEUTRAL}
    unknown = sorted(data.keys() - known - IGNORED)
    if any(key.startswith("dspark") for key in unknown):
        raise _dspark(", ".join(unknown))
    if unknown:
        raise ConfigError(f"config.json has keys this version does not know: {', '.join(unknown)}")
    check_fixed(data, FIXED | NEUTRAL)


def _dspark(sign: str) -> ConfigError:
    return ConfigError(
        f"this checkpoint has a DSpark draft module ({sign}), which this version cannot run; use one with "
        "plain MTP, such as deepseek-ai/DeepSeek-V4-Flash or deepseek-ai/DeepSeek-V4-Pro"
    )


def _read_rope_dim(data: Mapping[str, Any], head_dim: int) -> int:
    if data.get("partial_rotary_factor") is None:
        return integer(data, "qk_rope_head_dim")
    factor = real(data, "partial_rotary_factor")
    dim = round(factor * head_dim)
    whole = abs(dim - factor * head_dim) < 1e-6
    require(whole, "partial_rotary_factor", factor, f"a whole number of head_dim's {head_dim} channels")
    if "qk_rope_head_dim" in data:
        agree("qk_rope_head_dim", integer(data, "qk_rope_head_dim"), "partial_rotary_factor", dim)
    return dim


def _read_yarn(value: Any, key: str) -> dict[str, Any] | None:
    """`value`: rope_scaling, or rope_parameters.compress without its rope_theta."""
    scaling = dict(json_object(value, key))
    spelled = {scaling.pop(name) for name in ("type", "rope_type") if isinstance(scaling.get(name), str)}
    if spelled == {"default"}:
        require(not scaling, key, sorted(scaling), "no YaRN keys when the type is 'default'")
        return None
    require(spelled == {"yarn"}, f"{key}.type", sorted(spelled), "'yarn' or 'default'")
    check_fixed(scaling, YARN_FIXED, f"{key}.")
    names = (*YARN_INTEGERS, *YARN_REALS)
    if unknown := sorted(scaling.keys() - {*names, *YARN_FIXED}):
        raise ConfigError(f"{key} has keys this version does not know: {', '.join(unknown)}")
    if missing := [name for name in names if name not in scaling]:
        raise ConfigError(f"{key} lacks {', '.join(missing)}; YaRN needs all of {', '.join(names)}")
    values: dict[str, Any] = {name: integer(scaling, name) for name in YARN_INTEGERS}
    return values | {name: real(scaling, name) for name in YARN_REALS}


def _read_rope(data: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """qk_rope_head_dim, both thetas and YaRN, from either spelling."""
    dim = _read_rope_dim(data, head_dim)
    if data.get("rope_parameters") is None:
        if "rope_scaling" not in data:
            raise ConfigError("config.json lacks rope_scaling (or rope_parameters); write null for no YaRN")
        scaling = data["rope_scaling"]
        yarn = None if scaling is None else _read_yarn(scaling, "rope_scaling")
        thetas = {key: real(data, key) for key in ("rope_theta", "compress_rope_theta")}
        return {"qk_rope_head_dim": dim, "yarn": yarn, **thetas}
    parameters = json_object(data["rope_parameters"], "rope_parameters")
    parts = sorted(parameters)
    require(parts == ["compress", "main"], "rope_parameters", parts, "an object of 'main' and 'compress'")
    thetas, yarns = {}, {}
    for part, key in (("main", "rope_theta"), ("compress", "compress_rope_theta")):
        where = f"rope_parameters.{part}"
        values = dict(json_object(parameters[part], where))
        thetas[key] = real(values, "rope_theta")
        values.pop("rope_theta")
        if values.get("partial_rotary_factor") is not None:
            factor = real(values, "partial_rotary_factor")
            agree(f"{where}.partial_rotary_factor", round(factor * head_dim), "the RoPE width", dim)
        values.pop("partial_rotary_factor", None)
        if key in data:
            agree(key, real(data, key), where, thetas[key])
        yarns[part] = _read_yarn(values, where)
    require(yarns["main"] is None, "rope_parameters.main", parameters["main"], "rope_type 'default'")
    if data.get("rope_scaling") is not None:
        old = _read_yarn(data["rope_scaling"], "rope_scaling")
        agree("rope_scaling", old, "rope_parameters.compress", yarns["compress"])
    return {"qk_rope_head_dim": dim, "yarn": yarns["compress"], **thetas}


def _read_rates(data: Mapping[str, Any]) -> dict[str, int]:
    """Tokens per compressed entry by kind; "swa" has none."""
    rates = json_object(present(data, "compress_rates"), "compress_rates")
    if unknown := sorted(rates.keys() - LAYER_TYPES.keys()):
        raise ConfigError(f"compress_rates has keys this version does not know: {', '.join(unknown)}")
    return PUBLISHED_RATES | {LAYER_TYPES[key]: integer(rates, key) for key in rates}


def _read_layers(data: Mapping[str, Any], layers: int, extra: int) -> dict[str, Any]:
    """Ratio, kind and routing of each of the `layers` main and `extra` MTP blocks, from either spelling."""
    newer = data.get("layer_types") is not None
    rates = _read_rates(data) if newer or data.get("compress_rates") is not None else PUBLISHED_RATES
    if newer:
        kinds = [LAYER_TYPES[t] for t in one_a_layer(data, "layer_types", (layers,), tuple(LAYER_TYPES))]
    if not newer or data.get("compress_ratios") is not None:
        said = _read_ratios(data, layers, extra)
        if newer:
            agree("compress_ratios", said, "layer_types", kinds)
        ratios = [PUBLISHED_RATES[kind] for kind in said]
        agree("compress_ratios", ratios, "compress_rates", [rates[kind] for kind in said])
        kinds = said
    for alias, kind in RATE_ALIASES.items():
        if alias in data:
            agree(alias, integer(data, alias), f"the rate of the {kind} layers", rates[kind])
    return {
        "layer_kinds": tuple(kinds),
        "layer_ratios": tuple(rates[kind] for kind in kinds),
        "mtp_kinds": ("swa",) * extra,
        "mtp_ratios": (0,) * extra,
        "hash_layers": _read_hash_layers(data, layers),
    }


def _read_ratios(data: Mapping[str, Any], layers: int, extra: int) -> list[str]:
    """The kinds of the main layers from compress_ratios, which may go on with a 0 for the MTP block."""
    ratios = data.get("compress_ratios")
    if isinstance(ratios, list) and len(ratios) > layers + 1 and not any(ratios[layers:]):
        # The only published checkpoints with more than one block behind the main ones.
        raise _dspark(f"compress_ratios has {len(ratios)} entries for {layers} layers")
    by_ratio = {ratio: kind for kind, ratio in PUBLISHED_RATES.items()}
    ratios = one_a_layer(data, "compress_ratios", (layers, layers + extra), tuple(by_ratio))
    require(not any(ratios[layers:]), "compress_ratios", ratios[layers:], "0 for MTP blocks")
    return [by_ratio[ratio] for ratio in ratios[:layers]]


def _read_hash_layers(data: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    prefix: tuple[bool, ...] | None = None
    if data.get("mlp_layer_types") is None or data.get("num_hash_layers") is not None:
        count = integer(data, "num_hash_layers")
        require(0 <= count <= layers, "num_hash_layers", count, f"0 to num_hidden_layers, {layers}")
        prefix = tuple(i < count for i in range(layers))
    if data.get("mlp_layer_types") is None:
        assert prefix is not None
        return prefix
    names = one_a_layer(data, "mlp_layer_types", (layers,), tuple(MLP_TYPES))
    hashed = tuple(MLP_TYPES[name] for name in names)
    if prefix is not None:
        agree("num_hash_layers", prefix, "mlp_layer_types", hashed)
    return hashed


def _write_layers(values: Mapping[str, Any]) -> dict[str, Any]:
    """compress_ratios and num_hash_layers where they can say it, the newer keys where they cannot."""
    kinds, ratios = values["layer_kinds"], values["layer_ratios"]
    data: dict[str, Any] = {}
    if all(PUBLISHED_RATES[kind] == ratio for kind, ratio in zip(kinds, ratios, strict=True)):
        data["compress_ratios"] = [*ratios, *values["mtp_ratios"]]
    else:
        names = {kind: name for name, kind in LAYER_TYPES.items()}
        data["layer_types"] = [names[kind] for kind in kinds]
        rates = zip(kinds, ratios, strict=True)
        data["compress_rates"] = {names[kind]: ratio for kind, ratio in rates if kind != "swa"}
    hashed = values["hash_layers"]
    if all(hashed[: sum(hashed)]):
        data["num_hash_layers"] = sum(hashed)
    else:
        data["mlp_layer_types"] = ["hash_moe" if routed_by_id else "moe" for routed_by_id in hashed]
    return data
