"""A budget becomes slots, or a clear refusal."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import pytest
import torch

import fourfold
from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError, RequestError
from fourfold.tiers import budget
from fourfold.tiers.budget import least_slots, plan, plan_beside
from fourfold.tiers.table import ExpertTable
from fourfold.weights.load import checkpoint_items


@pytest.fixture(scope="module")
def config(tiny_folder):
    return ModelConfig.from_file(tiny_folder / "config.json")


@pytest.fixture(scope="module")
def items(tiny_folder, config):
    return checkpoint_items(tiny_folder, config)


@pytest.fixture(scope="module")
def total(items):
    return sum(item.stored.nbytes for item in items)


def test_what_fits_is_resident(items, config, total, monkeypatch):
    assert plan(items, config, total) is None
    monkeypatch.setattr(budget, "free_ram", lambda: total * 8 // 7 + 8)
    assert plan(items, config, None) is None
    monkeypatch.setattr(budget, "free_ram", lambda: None)
    assert plan(items, config, None) is None


def test_slots_keep_to_the_budget(items, config, total):
    made = plan(items, config, total - 1)
    assert made is not None and made.dense + made.table.nbytes == total
    assert made.table.experts == 40 and made.table.layers[-1] == "mtp.0.ffn.experts"
    used = made.dense + made.slots * made.table.expert_bytes
    assert used <= total - 1 < used + 9 * made.table.expert_bytes * 2 + (1 << 18)
    assert "RAM holds" in str(made) and "does not fit" not in str(made)


def test_without_a_size_free_ram_less_an_8th_counts(items, config, total, monkeypatch):
    monkeypatch.setattr(budget, "free_ram", lambda: total)
    made = plan(items, config, None)
    assert made is not None and made.budget == total - total // 8
    assert str(made).startswith("the model does not fit in free RAM; RAM holds")


def test_the_least_is_told_and_enough(items, config):
    with pytest.raises(
        RequestError, match=r"ram is 100\.0 KiB; allowed for this model: \d+KiB and more: "
    ) as e:
        plan(items, config, "100KiB")
    least = re.search(r"(\d+)KiB and more", str(e.value))
    assert least is not None
    made = plan(items, config, f"{least[1]}KiB")
    assert made is not None and made.slots == least_slots(config) == 4
    with pytest.raises(RequestError, match="ram is"):
        plan(items, config, f"{int(least[1]) - 1}KiB")


def test_free_ram_can_be_too_small_too(items, config, monkeypatch):
    monkeypatch.setattr(budget, "free_ram", lambda: 1 << 16)
    with pytest.raises(RequestError, match=r"free RAM allows 56\.0 KiB; allowed"):
        plan(items, config, None)


def test_experts_that_differ_between_layers_are_refused(items, config):
    def part(item, name):
        return item.expert == 3 and item.parameter == f"layers.2.ffn.experts.{name}"

    wider = [replace(i, dtype=torch.float32) if part(i, "w1.scale") else i for i in items]
    with pytest.raises(CheckpointError, match=r"layers\.2\.ffn.*must be alike"):
        ExpertTable.of_checkpoint(wider, config.n_routed_experts)
    fewer = [i for i in items if not i.parameter.startswith("layers.2.ffn.experts.w1.scale")]
    with pytest.raises(CheckpointError, match=r"layers\.2\.ffn\.experts: its experts have no w1\.scale"):
        ExpertTable.of_checkpoint(fewer, config.n_routed_experts)


def test_loading_with_a_budget(tiny_folder, tmp_path, capfd):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    model = fourfold.load(folder, ram="1700KiB", expert_copy=tmp_path / "copy")
    said = capfd.readouterr().err
    assert "fourfold: RAM holds" in said and "copying the experts to" in said
    assert model.tiers is not None
    assert "".join(fourfold.generate(model, "Once", max_tokens=5, seed=1)) == "".join(
        fourfold.generate(model, "Once", max_tokens=5, seed=1)
    )
    assert model.tiers.stats().bytes_read > 0
    model.tiers.close()
    assert fourfold.load(folder, ram="1GiB").tiers is None


def test_device_memory_is_an_accelerators(tiny_folder):
    with pytest.raises(
        RequestError, match=r"device_memory is '1GiB' with device 'cpu'; allowed: with an acc"
    ):
        fourfold.load(tiny_folder, device_memory="1GiB")


def test_what_fits_on_the_device_is_there(items, config, total):
    assert plan_beside(items, config, None, None, None) is None
    assert plan_beside(items, config, None, total * 8 // 7 + 8, None) is None
    assert plan_beside(items, config, total, 0, None) is None


def test_each_layer_has_as_many_experts_on_the_device(items, config, total):
    made = plan_beside(items, config, total - 1, None, None)
    assert made is not None and made.on_device == 7 and made.slots == 5
    assert "device holds 7 of 8 experts a layer, RAM 5 of the 5 others" in str(made)
    layer = 5 * made.table.expert_bytes
    few = plan_beside(items, config, made.dense + 2 * layer - 1, None, "1GiB")
    assert few is not None and few.on_device == 1 and few.slots == 35
    none = plan_beside(items, config, made.dense, None, "400KiB")
    assert none is not None and none.on_device == 0 and least_slots(config) <= none.slots < 40


def test_too_little_of_either_is_told(items, config, total):
    with pytest.raises(
        RequestError, match=r"device_memory is 1.0 KiB; allowed for this model: \d+KiB and more"
    ):
        plan_beside(items, config, "1KiB", None, None)
    with pytest.raises(RequestError, match=r"free device memory allows 875 B"):
        plan_beside(items, config, None, 1000, None)
    with pytest.raises(RequestError, match=r"ram is 1.0 KiB; allowed for this model: \d+KiB and more: room"):
        plan_beside(items, config, total - 1, None, "1KiB")
