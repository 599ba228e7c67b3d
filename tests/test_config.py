"""ModelConfig: both spellings, strictness, and that any input gives a config or a ConfigError."""

from __future__ import annotations

import copy
import dataclasses
import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.config import ModelConfig
from fourfold.errors import ConfigError

GOLDEN = resources.files("fourfold") / "conformance" / "golden" / "config.json"
PRESETS = {name: resources.files("fourfold") / "configs" / f"{name}.json" for name in ("flash", "pro")}
BASE = json.loads(GOLDEN.read_text())

NEWER: dict[str, Any] = {
    "layer_types": [
        "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention",
        "compressed_sparse_attention", "heavily_compressed_attention",
    ],
    "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
    "mlp_layer_types": ["hash_moe", "moe", "moe", "moe", "moe"],
    "partial_rotary_factor": 0.5,
    "rope_parameters": {
        "main": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        "compress": {
            "rope_type": "yarn", "rope_theta": 160000.0, "factor": 16.0, "attention_factor": 1.0,
            "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1,
        },
    },
}  # fmt: skip
OLDER = (
    "compress_ratios",
    "num_hash_layers",
    "qk_rope_head_dim",
    "rope_scaling",
    "rope_theta",
    "compress_rope_theta",
)


def newer() -> dict[str, Any]:
    return {key: value for key, value in BASE.items() if key not in OLDER} | copy.deepcopy(NEWER)


def test_published_models():
    flash, pro = (ModelConfig.from_json(json.loads(file.read_text())) for file in PRESETS.values())
    assert (flash.num_hidden_layers, flash.hidden_size, flash.index_topk) == (43, 4096, 512)
    assert flash.layer_kinds[:4] == ("swa", "swa", "csa", "hca")
    assert flash.layer_kinds[-1] == "csa"
    assert (pro.num_hidden_layers, pro.num_attention_heads, pro.routed_scaling_factor) == (61, 128, 2.5)
    assert pro.layer_ratios[:4] == (128, 128, 4, 128)
    assert flash.mtp_ratios == pro.mtp_ratios == (0,)
    assert flash.hash_layers == (True,) * 3 + (False,) * 40


@pytest.mark.parametrize("name", ["flash", "pro", "flash-base", "pro-base"])
def test_presets_are_what_to_json_writes(name):
    data = json.loads((resources.files("fourfold") / "configs" / f"{name}.json").read_text())
    assert ModelConfig.from_json(data).to_json() == data
    assert data["expert_dtype"] == ("fp8" if name.endswith("base") else "fp4")


def test_both_spellings_mean_the_same():
    assert ModelConfig.from_json(newer()) == ModelConfig.from_json(BASE)
    assert ModelConfig.from_json(BASE | NEWER) == ModelConfig.from_json(BASE)


def test_transformers_config_is_accepted(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    everything = transformers.DeepseekV4Config(**copy.deepcopy(BASE))
    assert ModelConfig.from_json(everything.to_dict()) == ModelConfig.from_json(BASE)
    everything.save_pretrained(tmp_path)
    assert ModelConfig.from_file(tmp_path) == ModelConfig.from_json(BASE)
    transformers.DeepseekV4Config(num_hidden_layers=4).save_pretrained(tmp_path)
    config = ModelConfig.from_file(tmp_path)
    assert config.layer_kinds == ("hca", "hca", "hca", "csa")
    assert config.yarn is None


def test_compress_ratios_with_or_without_mtp_entries():
    short = BASE | {"compress_ratios": BASE["compress_ratios"][:-1]}
    assert ModelConfig.from_json(short) == ModelConfig.from_json(BASE)


def test_layers_that_the_official_spelling_cannot_say_round_trip():
    data = newer() | {
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 16},
        "mlp_layer_types": ["moe", "hash_moe", "moe", "moe", "hash_moe"],
    }
    config = ModelConfig.from_json(data)
    assert config.layer_ratios == (0, 2, 16, 2, 16)
    assert config.hash_layers == (False, True, False, False, True)
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    "model_type", ["deepseek_v41", "deepseek_v4.1", "deepseek_v4_flash", "DeepSeek_V4", None, 4]
)
def test_model_type_is_matched_exactly(model_type):
    with pytest.raises(ConfigError, match=r"model_type is .*allowed: 'deepseek_v4' exactly"):
        ModelConfig.from_json(BASE | {"model_type": model_type})


def test_unknown_keys_are_all_listed():
    with pytest.raises(ConfigError, match="does not know: engram_layers, n_gram"):
        ModelConfig.from_json(BASE | {"n_gram": 3, "engram_layers": []})
    with pytest.raises(ConfigError, match="quantization_config: ignored_layers"):
        ModelConfig.from_json(BASE | {"quantization_config": {"ignored_layers": ["head"]}})


@pytest.mark.parametrize(
    "extra", [{"dspark_markov_rank": 256}, {"compress_ratios": [*BASE["compress_ratios"], 0, 0]}]
)
def test_a_dspark_module_is_refused_with_what_to_use_instead(extra):
    with pytest.raises(
        ConfigError, match=r"DSpark draft module \((dspark_markov_rank|.* 8 entries .*)\).* use .*V4-Flash or"
    ):
        ModelConfig.from_json(BASE | extra)


def test_keys_that_change_nothing_are_ignored():
    harmless = {
        "transformers_version": "9", "torch_dtype": "float64", "use_cache": False, "pad_token_id": 3,
        "torchscript": False, "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV4Config"},
        "pruned_heads": {}, "tie_encoder_decoder": False, "n_group": 1, "topk_group": 1, "ep_size": 1,
        "first_k_dense_replace": 0, "moe_layer_freq": 1, "pretraining_tp": 1, "intermediate_size": 128,
        "num_local_experts": 8, "compress_rate_csa": 4, "compress_rate_hca": 128,
    }  # fmt: skip
    harmless["rope_scaling"] = BASE["rope_scaling"] | {"mscale": 1.0, "mscale_all_dim": 1}
    assert ModelConfig.from_json(BASE | harmless) == ModelConfig.from_json(BASE)
    assert not ModelConfig.from_json(BASE | harmless).to_json().keys() & {"n_group", "auto_map"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'; allowed: 'sqrtsoftplus'"),
        ({"norm_topk_prob": False}, "norm_topk_prob is False; allowed: True"),
        ({"norm_topk_prob": 1}, "norm_topk_prob is 1; allowed: True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"topk_method": "greedy"}, "topk_method is 'greedy'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4; allowed: 1"),
        ({"n_shared_experts": 2}, "n_shared_experts is 2; allowed: 1"),
        ({"architectures": ["LlamaForCausalLM"]}, "architectures is"),
        ({"hidden_size": 0}, "hidden_size is 0; allowed: 1 to 1048576"),
        ({"hidden_size": "256"}, "hidden_size is '256'; allowed: an integer"),
        ({"hidden_size": True}, "hidden_size is True; allowed: an integer"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; allowed: 1 to 1024"),
        ({"hidden_size": 2**50}, "hidden_size is 1125899906842624; allowed: 1 to 1048576"),
        ({"n_routed_experts": 10**12}, "n_routed_experts is 1000000000000; allowed: 1 to 65536"),
        ({"n_routed_experts": 65536}, "n_routed_experts is 65536; allowed: at most 21845 with 6 layers"),
        ({"index_head_dim": 8192}, "index_head_dim is 8192; allowed: 1 to 4096"),
        ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers is 2; allowed: 0 to 1"),
        ({"rope_theta": 1}, "^rope_theta is 1.0; allowed: a number above 1"),
        ({"compress_rope_theta": 1.0}, "compress_rope_theta is 1.0; allowed: a number above 1"),
        ({"rope_scaling": BASE["rope_scaling"] | {"beta_slow": 1e-320}}, "rope_scaling.beta_slow is 1e-320"),
        ({"rope_scaling": BASE["rope_scaling"] | {"beta_slow": 32}}, "allowed: beta_fast above beta_slow"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; allowed: a finite number"),
        ({"hc_eps": 10**400}, "hc_eps is 1"),
        ({"o_groups": 3}, "o_groups is 3; allowed: a divisor of num_attention_heads, 4"),
        ({"qk_rope_head_dim": 63}, "qk_rope_head_dim is 63; allowed: an even number"),
        ({"qk_rope_head_dim": 256}, "qk_rope_head_dim is 256; allowed: at most head_dim, 128"),
        ({"index_head_dim": 96}, "index_head_dim is 96; allowed: a power of two"),
        ({"index_head_dim": 32}, "index_head_dim is 32; allowed: at least qk_rope_head_dim, 64"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9; allowed: at most n_routed_experts, 8"),
        ({"eos_token_id": 512}, "eos_token_id is 512; allowed: below vocab_size, 512"),
        ({"num_hash_layers": 6}, "num_hash_layers is 6; allowed: 0 to num_hidden_layers, 5"),
        ({"expert_dtype": "int2"}, "expert_dtype is 'int2'; allowed"),
        ({"compress_ratios": [0, 4, 128]}, "compress_ratios has 3 entries; allowed: 5 or 6"),
        ({"compress_ratios": [0, 4, 64, 4, 128]}, r"compress_ratios\[2\] is 64; allowed: one of \(0, 4"),
        ({"compress_ratios": [0, 4, 128, 4, 128, 4]}, "allowed: 0 for MTP blocks"),
        ({"compress_rates": {"compressed_sparse_attention": 8}}, "they must agree"),
        ({"layer_types": ["sliding_attention"] * 5, "compress_rates": {}}, "compress_ratios .* must agree"),
        ({"partial_rotary_factor": 0.25}, "qk_rope_head_dim is 64 but partial_rotary_factor says 32"),
        ({"partial_rotary_factor": 0.3}, "a whole number of head_dim's 128 channels"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.type is .'linear'.; allowed: 'yarn'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_scaling lacks original_max_position"),
        ({"rope_scaling": BASE["rope_scaling"] | {"mscale": 2}}, "rope_scaling.mscale is 2; allowed: 1.0"),
        ({"rope_scaling": BASE["rope_scaling"] | {"ramp": 2}}, "rope_scaling has keys .*: ramp"),
        ({"rope_scaling": BASE["rope_scaling"] | {"attention_factor": 1.3}}, "attention_factor is 1.3"),
        ({"n_group": 8}, "n_group is 8; allowed: 1"),
        ({"first_k_dense_replace": 3}, "first_k_dense_replace is 3; allowed: 0"),
        ({"pruned_heads": {"3": [1]}}, "pruned_heads is .*; allowed: {}"),
        ({"intermediate_size": 64}, "intermediate_size is 64 but moe_intermediate_size says 128"),
        ({"num_local_experts": 4}, "num_local_experts is 4 but n_routed_experts says 8"),
        ({"compress_rate_csa": 8}, "compress_rate_csa is 8 but the rate of the csa layers says 4"),
        ({"rope_parameters": {"main": {}}}, "rope_parameters is .*'main'"),
        ({"quantization_config": {"fmt": "e5m2"}}, "quantization_config.fmt is 'e5m2'; allowed: 'e4m3'"),
        ({"quantization_config": {"weight_block_size": [32, 32]}}, "weight_block_size is .32, 32."),
        ({"quantization_config": {"expert_dtype": "fp8"}}, "expert_dtype is 'fp4' but"),
    ],
)  # fmt: skip
def test_errors_name_value_and_what_is_allowed(change, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_json(BASE | change)


OPTIONAL = {
    "architectures", "attention_bias", "expert_dtype", "hidden_act", "norm_topk_prob", "num_key_value_heads",
    "quantization_config", "scoring_func", "tie_word_embeddings", "topk_method", "torch_dtype",
}  # fmt: skip


@pytest.mark.parametrize("key", sorted(BASE))
def test_missing_keys_are_named(key):
    data = {k: v for k, v in BASE.items() if k != key}
    if key in OPTIONAL:
        ModelConfig.from_json(data)
        return
    with pytest.raises(ConfigError, match=f"lacks {key}"):
        ModelConfig.from_json(data)


def test_files_that_are_no_config(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"config\.json: cannot read"):
        ModelConfig.from_file(tmp_path)
    for text in ("{", "[" * 100_000, "\xff"):
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match="not valid JSON"):
            ModelConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="must hold an object, found list"):
        ModelConfig.from_file(tmp_path)


def test_a_key_that_occurs_twice_is_refused(tmp_path: Path):
    text = json.dumps(BASE)
    (tmp_path / "config.json").write_text(text[:-1] + ', "hidden_size": 512}')
    with pytest.raises(ConfigError, match=r"config\.json: .*hidden_size occurs more than once"):
        ModelConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_text(text.replace('"type": "yarn"', '"type": "yarn", "factor": 4'))
    with pytest.raises(ConfigError, match=r"factor occurs more than once"):
        ModelConfig.from_file(tmp_path)


def test_a_refused_value_is_not_shown_at_any_length():
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_json(BASE | {"hidden_size": "x" * 10**6})
    assert len(str(caught.value)) < 400


def test_replace_is_checked_too():
    config = ModelConfig.from_json(BASE)
    with pytest.raises(ConfigError, match="layer_ratios"):
        dataclasses.replace(config, num_hidden_layers=4)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v), max_leaves=5
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(BASE | NEWER)), values, st.booleans())
def test_no_value_does_anything_but_load_or_raise_configerror(key, value, use_newer):
    data = (newer() if use_newer else copy.deepcopy(BASE)) | {key: value}
    try:
        config = ModelConfig.from_json(data)
    except ConfigError as error:
        assert str(error)  # noqa: PT017  # that it is a ConfigError with a text is the point
    else:
        assert ModelConfig.from_json(config.to_json()) == config


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["rope_scaling", "quantization_config", "main", "compress"]), st.text(max_size=8), values
)
def test_nested_values_likewise(where, key, value):
    data = newer() if where in ("main", "compress") else copy.deepcopy(BASE)
    part = data["rope_parameters"][where] if where in ("main", "compress") else data[where]
    part[key if value is None else sorted(part)[hash(key) % len(part)]] = value
    try:
        ModelConfig.from_json(data)
    except ConfigError as error:
        assert str(error)  # noqa: PT017
