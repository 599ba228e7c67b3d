from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import fourfold
from fourfold.config import ModelConfig
from fourfold.errors import ConfigError
from fourfold.kernels.formats import decode
from fourfold.weights.load import read_checkpoint
from fourfold.weights.names import scale_name
from fourfold.weights.synth import PRESETS, preset, reduced, synthesise
from tests.weights.raw import read_folder

SMALL = {
    "vocab_size": 300, "moe_intermediate_size": 128, "num_attention_heads": 4, "head_dim": 128,
    "q_lora_rank": 128, "o_groups": 2, "o_lora_rank": 64, "sliding_window": 8, "index_n_heads": 4,
    "index_topk": 4,
}  # fmt: skip


def small(folder: Path, **options) -> Path:
    options = {"like": "flash", "layers": 3, "experts": 4, "hidden": 256, "overrides": SMALL} | options
    synthesise(folder, progress=False, **options)
    return folder


@pytest.mark.parametrize("like", ["flash", "pro", "flash-base"])
def test_it_loads_and_runs(tmp_path: Path, like):
    folder = small(tmp_path / "model", like=like)
    model = fourfold.load(folder)
    assert set(model.config.layer_kinds) >= {"csa", "hca"}
    assert model.config.num_nextn_predict_layers == 1
    with torch.no_grad():
        logits = model(torch.arange(140)[None]).logits
    assert logits.isfinite().all()
    assert 0.1 < logits.std() < 10


def test_the_same_seed_gives_the_same_bits_whatever_the_shards(tmp_path: Path):
    first = read_folder(small(tmp_path / "a"))
    assert read_folder(small(tmp_path / "b", shard_size=100_000)) == first
    other = read_folder(small(tmp_path / "c", seed=1))
    assert all(other[name][2] != first[name][2] for name in first if name.endswith(".weight"))


def test_matrices_keep_the_variance_and_tables_name_distinct_experts(tmp_path: Path):
    folder = small(tmp_path / "model")
    stored = dict(read_checkpoint(folder, ModelConfig.from_file(folder)))
    for name, tensor in stored.items():
        if name.endswith(".weight") and scale_name(name) in stored:
            weight = decode(tensor, stored[scale_name(name)])
            assert weight.std() * weight.shape[-1] ** 0.5 == pytest.approx(1, rel=0.05), name
            assert weight.mean().abs() < 0.05 * weight.std()
    table = stored["layers.0.ffn.gate.tid2eid"]
    assert all(len(set(row)) == len(row) for row in table.tolist())
    assert stored["embed.weight"].float().std() == pytest.approx(1, rel=0.05)
    assert stored["norm.weight"].float().mean() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("like", PRESETS)
@pytest.mark.parametrize("layers", [1, 2, 3, 4, 7, None])
def test_few_layers_keep_every_kind(like, layers):
    config = reduced(preset(like), layers=layers)
    assert config.num_hidden_layers == (layers or preset(like).num_hidden_layers)
    if layers is None or layers >= 2:
        assert {"csa", "hca"} <= set(config.layer_kinds)
        assert {True, False} == set(config.hash_layers)
    if layers is not None and layers >= 4:
        assert config.layer_kinds == preset(like).layer_kinds[:layers]
    assert config.expert_dtype == ("fp8" if like.endswith("base") else "fp4")


def test_reductions(tmp_path: Path):
    flash = preset("flash")
    assert reduced(flash) == flash
    config = reduced(flash, experts=4, hidden=512, overrides={"vocab_size": 1000})
    assert (config.n_routed_experts, config.num_experts_per_tok) == (4, 4)
    assert (config.hidden_size, config.vocab_size) == (512, 1000)
    with pytest.raises(ConfigError, match="layers is 44; allowed: 1 to 43"):
        reduced(flash, layers=44)
    with pytest.raises(ConfigError, match="like is 'flush'; allowed: flash, pro"):
        synthesise(tmp_path / "x", like="flush")
    with pytest.raises(ConfigError, match="does not know: hidden"):
        reduced(flash, overrides={"hidden": 3})


def test_a_config_of_ones_own(tiny_folder: Path, tmp_path: Path):
    config = synthesise(tmp_path / "again", like=str(tiny_folder / "config.json"), progress=False)
    assert config == ModelConfig.from_file(tiny_folder)
    assert read_folder(tmp_path / "again") == read_folder(tiny_folder)


def test_fewer_layers_of_a_config_with_rates_of_its_own(tmp_path: Path):
    kinds = ("swa", "hca", "swa", "csa", "hca", "csa")
    rates = {"swa": 0, "csa": 2, "hca": 16}
    full = dataclasses.replace(
        reduced(preset("flash"), layers=6),
        layer_kinds=kinds,
        layer_ratios=tuple(rates[kind] for kind in kinds),
        hash_layers=(False, True, False, True, False, False),
    )
    (tmp_path / "config.json").write_text(json.dumps(full.to_json()))
    config = reduced(preset(str(tmp_path / "config.json")), layers=3)
    assert config.layer_kinds == ("hca", "swa", "csa")
    assert config.layer_ratios == (16, 0, 2)
    assert config.hash_layers == (True, False, False)


def test_without_the_mtp_block():
    config = reduced(preset("flash"), layers=4, overrides={"num_nextn_predict_layers": 0})
    assert (config.num_nextn_predict_layers, config.mtp_kinds) == (0, ())


@pytest.mark.parametrize("key", ["hidden_size", "moe_intermediate_size"])
def test_widths_that_fp4_cannot_hold_are_refused_before_anything_is_written(tmp_path: Path, key):
    with pytest.raises(ConfigError, match=f"{key} is 100; allowed: multiples of 32, which FP4 experts need"):
        small(tmp_path / "model", overrides=SMALL | {key: 100})
    assert not list(tmp_path.iterdir())
