from __future__ import annotations

from importlib import resources

import pytest

from fourfold.config import ModelConfig
from fourfold.weights.names import canonical, checkpoint_spec, parameter_of, scale_name
from tests.weights.raw import GOLDEN, read_raw, tensor_name


def test_spec_is_the_golden_checkpoint():
    spec = checkpoint_spec(ModelConfig.from_file(GOLDEN))
    stored = read_raw(GOLDEN / "model.safetensors")
    scales = {scale_name(name) for name, value in spec.items() if value.kind in ("expert", "linear")}
    assert spec.keys() | scales == stored.keys()
    for name, value in spec.items():
        dtype, shape, _ = stored[name]
        packed = 2 if dtype == "I8" else 1
        assert value.shape == (*shape[:-1], shape[-1] * packed)
        kinds = {"F8_E4M3": "linear", "I8": "expert", "BF16": "bf16", "F32": "f32", "I64": "int"}
        assert value.kind == kinds[dtype]


@pytest.mark.parametrize(
    ("stored", "official"),
    [
        ("model.layers.0.attn.wkv.weight", "layers.0.attn.wkv.weight"),
        ("layers.0.attn.wkv.weight_scale_inv", "layers.0.attn.wkv.scale"),
        ("model.mtp.0.ffn.experts.3.w2.weight_scale_inv", "mtp.0.ffn.experts.3.w2.scale"),
        ("layers.0.hc_attn_scale", "layers.0.hc_attn_scale"),
        ("embed.weight", "embed.weight"),
    ],
)
def test_older_spellings(stored, official):
    assert canonical(stored) == official


def test_experts_are_rows_of_one_parameter():
    assert parameter_of("layers.3.ffn.experts.7.w1.weight") == ("layers.3.ffn.experts.w1.weight", 7)
    assert parameter_of("model.mtp.0.ffn.experts.11.w2.scale") == ("mtp.0.ffn.experts.w2.scale", 11)
    shared = "layers.3.ffn.shared_experts.w1.weight"
    assert parameter_of(shared) == (shared, None)
    for name in checkpoint_spec(ModelConfig.from_file(GOLDEN)):
        assert tensor_name(*parameter_of(name)) == name


@pytest.mark.parametrize(("preset", "layers", "experts"), [("flash", 43, 256), ("pro", 61, 384)])
def test_published_models_have_every_layer(preset, layers, experts):
    with resources.as_file(resources.files("fourfold") / "configs" / f"{preset}.json") as file:
        spec = checkpoint_spec(ModelConfig.from_file(file))
    assert sum(".experts." in name for name in spec) == (layers + 1) * experts * 3
    assert sum(name.endswith("tid2eid") for name in spec) == 3
    assert spec["mtp.0.e_proj.weight"].shape == spec["mtp.0.h_proj.weight"].shape
