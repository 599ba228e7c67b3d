"""What a model asks for, against counts done by hand and the published ones."""

from __future__ import annotations

import functools

import pytest

from fourfold.errors import DownloadError
from fourfold.plan import Demand, find_model
from fourfold.weights.export import export_checkpoint
from fourfold.weights.inspect import attended_entries, kv_read_bytes
from tests.weights.raw import GOLDEN


@functools.cache
def demand(name: str) -> Demand:
    return find_model(name)


@pytest.mark.parametrize(
    ("name", "total", "active", "read", "split", "expert"),
    [
        ("flash", 284.3, 13.3, 11.22, {"experts fp4": 3.45, "dense fp8": 5.86, "dense bf16": 0.71}, 13.37),
        ("pro", 1573.0, 48.9, 39.67, {"experts fp4": 12.84, "dense fp8": 22.70, "dense bf16": 1.92}, 35.09),
    ],
)
def test_published_models(name, total, active, read, split, expert):
    found = demand(name)
    assert round(found.parameters_total / 1e9, 1) == total
    assert round(found.parameters_active / 1e9, 1) == active
    assert round(sum(found.read_by_format.values()) / 1e9, 2) == read
    assert {key: round(found.read_by_format[key] / 1e9, 2) for key in split} == split
    assert round(found.one_expert_bytes / 1e6, 2) == expert
    assert found.total_bytes == found.resident_bytes + found.expert_bytes + found.mtp_expert_bytes
    assert found.read_by_format["head bf16"] == found.head_bytes


def test_one_token_reads_what_inspect_says():
    found = demand("flash")
    one = found.dense_bytes + found.expert_read(1)
    assert one == pytest.approx(sum(found.read_by_format.values()), rel=1e-9)


def test_experts_met_by_a_batch():
    found = demand("flash")
    assert found.experts_met(1) == pytest.approx(6 / 256)
    assert found.experts_met(2) == pytest.approx(2 * 6 / 256 - (6 / 256) ** 2)
    assert 0.999 < found.experts_met(512) < 1


def test_kv_reads_by_hand():
    config = demand("flash").config
    tokens = 1 << 17
    window = 43 * 128 * 1024
    csa = 21 * (tokens // 4 * 256 + 512 * 1024)
    hca = 20 * (tokens // 128) * 1024
    assert kv_read_bytes(config, tokens, published=False) == window + csa + hca
    assert kv_read_bytes(config, 3, published=False) == 43 * 3 * 1024
    assert attended_entries(config, 1000)[:4] == [(128, 0), (128, 0), (128 + 250, 250), (128 + 7, 0)]


def test_operations_grow_with_the_context_by_attention_alone():
    found = demand("flash")
    products = found.product_operations(head=True)
    assert products == pytest.approx(2 * found.parameters_active, rel=1e-3)
    assert products - found.product_operations(head=False) == 2 * found.head_parameters
    more = found.attention_operations(1 << 20) - found.attention_operations(0)
    index = 21 * ((1 << 20) // 4) * 64 * 128
    entries = (43 * 127 + 21 * 512 + 20 * ((1 << 20) // 128)) * 2 * 64 * 512
    assert more == 2 * (index + entries)


def test_stored_weights_count_as_they_are_stored(tmp_path):
    (tmp_path / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    stored, published = find_model(str(GOLDEN)), find_model(str(tmp_path))
    assert stored == published  # the golden checkpoint has the published formats
    export_checkpoint(GOLDEN, tmp_path / "wide", experts="bf16", progress=False)
    wide = find_model(str(tmp_path / "wide"))
    assert wide.expert_bytes == 2 * wide.expert_parameters > stored.expert_bytes


def test_a_name_never_downloads(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("a download"))
    published = find_model("deepseek-ai/DeepSeek-V4-Pro")
    assert published.config == demand("pro").config
    with pytest.raises(DownloadError, match=r"nobody/nothing: no such folder .* allowed: flash, pro"):
        find_model("nobody/nothing")
    with pytest.raises(DownloadError, match="allowed: flash"):
        find_model(str(tmp_path / "none"))
