"""quantization_config of config.json: the published one, and that of the Ascend recipes' int8 and int4.

The published checkpoints say how their FP8 matrices are stored.  The recipes of cann-recipes-infer write an
object in the style of compressed-tensors: int8 for linears, and int4 for the routed experts ("MoEGMM") of
w4a8, symmetric, one scale per output channel; inputs int8, one scale per token, found as they come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fourfold.config_keys import EXPERT_DTYPES, QUANTIZATION, QUANTIZATION_IGNORED
from fourfold.config_values import agree, check_fixed, json_object, require
from fourfold.errors import ConfigError

_INTEGER_FIXED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "global_compression_ratio": 1,
    "kv_cache_scheme": None,
    # Of the recipes' index cache, which is the engine's affair and not the weights'.
    "li_cache_scheme": {"type": "int", "num_bits": 8},
}


def read_quantization(data: Mapping[str, Any]) -> str | None:
    """The routed experts' storage type, after checking quantization_config.

    The recipes leave the published `expert_dtype` beside their own quantization_config, which then rules.
    """
    expert_dtype = data.get("expert_dtype")
    if data.get("quantization_config") is not None:
        quantization = json_object(data["quantization_config"], "quantization_config")
        if quantization.get("quant_method") == _INTEGER_FIXED["quant_method"]:
            return _read_integer(quantization)
        known = {*QUANTIZATION, *QUANTIZATION_IGNORED, "expert_dtype"}
        _refuse_unknown(quantization, known)
        check_fixed(quantization, QUANTIZATION, "quantization_config.")
        inner = quantization.get("expert_dtype")
        if inner is not None and expert_dtype is not None:
            agree("expert_dtype", expert_dtype, "quantization_config.expert_dtype", inner)
        expert_dtype = expert_dtype if inner is None else inner
    require(expert_dtype in (None, *EXPERT_DTYPES), "expert_dtype", expert_dtype, f"one of {EXPERT_DTYPES}")
    return expert_dtype


def integer_quantization(expert_bits: int, ignored: Sequence[str]) -> dict[str, Any]:
    """The recipes' quantization_config.  expert_bits: 8 or 4; ignored: linears that are left as they are."""
    groups = {"group_0": _group("Linear", 8)}
    if expert_bits == 4:
        groups["group_1"] = _group("MoEGMM", 4)
    return {**_INTEGER_FIXED, "config_groups": groups, "ignore": list(ignored)}


def _read_integer(quantization: Mapping[str, Any]) -> str:
    _refuse_unknown(quantization, {*_INTEGER_FIXED, "config_groups", "ignore"})
    check_fixed(quantization, _INTEGER_FIXED, "quantization_config.")
    groups = json_object(quantization.get("config_groups"), "quantization_config.config_groups")
    for bits in (8, 4):
        expected = integer_quantization(bits, ())["config_groups"]
        if groups.keys() == expected.keys():
            for name in groups:
                where = f"quantization_config.config_groups.{name}"
                group = json_object(groups[name], where)
                _refuse_unknown(group, set(expected[name]), where)
                check_fixed(group, expected[name], f"{where}.")
            return f"int{bits}"
    raise ConfigError(
        f"quantization_config.config_groups has {', '.join(groups) or 'nothing'}; "
        "allowed: group_0 (int8 linears), and group_1 (int4 experts) or not"
    )


def _refuse_unknown(found: Mapping[str, Any], known: set[str], where: str = "quantization_config") -> None:
    if unknown := sorted(found.keys() - known):
        raise ConfigError(f"unknown keys in {where}: {', '.join(unknown)}")


def _group(target: str, bits: int) -> dict[str, Any]:
    weights = {"dynamic": False, "num_bits": bits, "observer": "minmax", "strategy": "channel"}
    inputs = {"dynamic": True, "num_bits": 8, "observer": "memoryless", "strategy": "token"}
    common: dict[str, Any] = {
        "actorder": None, "block_structure": None, "group_size": None, "observer_kwargs": {},
        "symmetric": True, "type": "int",
    }  # fmt: skip
    return {
        "targets": [target],
        "weights": {**common, **weights},
        "input_activations": {**common, **inputs},
        "output_activations": None,
        "activation_use_clip": False,
    }
