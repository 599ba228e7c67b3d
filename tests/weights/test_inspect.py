from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest

from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError, ConfigError
from fourfold.weights.inspect import inspect_checkpoint, kv_bytes
from tests.weights.raw import GOLDEN, read_raw, rewritten

CONFIGS = resources.files("fourfold") / "configs"


def report(name: str):
    with resources.as_file(CONFIGS / f"{name}.json") as file:
        return inspect_checkpoint(file)


@pytest.mark.parametrize(
    ("name", "total", "active", "gigabytes", "layers"),
    [
        ("flash", 284.3, 13.3, 159.6, {"swa": 2, "csa": 21, "hca": 20}),
        ("pro", 1573.0, 48.9, 864.7, {"swa": 0, "csa": 30, "hca": 31}),
        ("flash-base", 284.3, 13.3, 292.5, {"swa": 2, "csa": 21, "hca": 20}),
    ],
)
def test_the_published_sizes(name, total, active, gigabytes, layers):
    found = report(name)
    assert round(found.parameters_total / 1e9, 1) == total
    assert round(found.parameters_active / 1e9, 1) == active
    assert round(found.bytes_total / 1e9, 1) == gigabytes
    assert found.layers == layers
    assert found.expert_format == ("fp8" if name.endswith("base") else "fp4")
    assert not found.has_weights


def test_headers_and_config_agree_on_a_published_layout(tmp_path: Path):
    stored = inspect_checkpoint(GOLDEN)
    (tmp_path / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    bare = inspect_checkpoint(tmp_path)
    differing = {"path", "has_weights", "files"}
    stored_json, bare_json = stored.to_json(), bare.to_json()
    assert {k: v for k, v in stored_json.items() if k not in differing} == {
        k: v for k, v in bare_json.items() if k not in differing
    }
    assert (stored.has_weights, stored.files) == (True, 1)
    raw = read_raw(GOLDEN / "model.safetensors")
    assert stored.tensors == len(raw)
    assert stored.bytes_total == sum(len(data) for _, _, data in raw.values())
    assert json.loads(json.dumps(stored_json)) == stored_json


def test_experts_whose_format_config_json_does_not_state(tmp_path: Path):
    config = json.loads((GOLDEN / "config.json").read_text())
    del config["expert_dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    found, stated = inspect_checkpoint(tmp_path), inspect_checkpoint(GOLDEN)
    assert found.expert_format == "not stated (counted as fp4)"
    assert found.bytes_by_format[found.expert_format] == stated.bytes_by_format["fp4"]
    assert found.bytes_total == stated.bytes_total
    (tmp_path / "model.safetensors").write_bytes((GOLDEN / "model.safetensors").read_bytes())
    assert inspect_checkpoint(tmp_path).expert_format == "fp4"


def test_a_config_beyond_reason_is_refused_at_once(tmp_path: Path):
    config = json.loads((GOLDEN / "config.json").read_text()) | {"n_routed_experts": 10**12}
    (tmp_path / "evil.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"evil\.json: n_routed_experts is 1000000000000; allowed: 1 to"):
        inspect_checkpoint(tmp_path / "evil.json")


def test_kv_cache_by_hand():
    with resources.as_file(CONFIGS / "flash.json") as file:
        config = ModelConfig.from_file(file)
    entry, index = 448 + 7 + 2 * 64, 64 + 4  # FP8 values, their scales, bf16 RoPE; FP4 key and its scales
    tokens = 1 << 20
    window = 44 * 128 * entry
    compressed = 21 * (tokens // 4) * (entry + index) + 20 * (tokens // 128) * entry
    assert kv_bytes(config, tokens, published=True) == window + compressed
    assert kv_bytes(config, 3, published=True) == 44 * 3 * entry
    bf16 = 44 * 128 * 1024 + 21 * (tokens // 4) * (1024 + 256) + 20 * (tokens // 128) * 1024
    assert report("flash").kv_bytes["bf16"]["1M"] == kv_bytes(config, tokens, published=False) == bf16


def test_the_kv_cache_is_as_small_as_the_report_says():
    # V3.2: bytes a token in its FP8 layout, 512 + 4 scales of 4 + 64 bf16, and index keys.
    v3 = 61 * (656 + 132)
    for name, share in (("flash", 0.07), ("pro", 0.10)):
        per_token = report(name).kv_bytes["published"]["1M"] / (1 << 20)
        assert per_token / v3 == pytest.approx(share, abs=0.006)


def test_a_checkpoint_that_would_not_load_is_not_described(tmp_path: Path):
    folder = rewritten(GOLDEN, tmp_path / "broken", lambda tensors: tensors.pop("norm.weight"))
    with pytest.raises(CheckpointError, match=r"missing tensors: norm\.weight"):
        inspect_checkpoint(folder)
