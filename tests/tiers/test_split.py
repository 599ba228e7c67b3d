"""Experts on two sides.  Here both are the CPU; tests/ascend has a device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fourfold
from fourfold.conformance.logits import distance
from fourfold.loading import _tiered
from fourfold.tiers import Plan
from fourfold.tiers.counts import ExpertCounts
from fourfold.tiers.split import OnDevice, busiest
from fourfold.weights.load import checkpoint_items
from tests.tiers.conftest import table_of

IDS = torch.arange(60).remainder(397).view(1, -1)


@pytest.fixture
def split(tiered, tiny_folder):
    """split(count, slots): a model with `count` experts of each layer on one side, `slots` for the others;
    which they are follows from a file of counts."""

    def build(count: int, slots: int, file: Path | None = None):
        model = tiered(tiny_folder, 4)
        model.tiers.close()
        table = table_of(tiny_folder)
        made = Plan(None, 0, slots, table, automatic=False, on_device=count)
        items = checkpoint_items(tiny_folder, model.config)
        model.tiers = _tiered(model, made, None, items, ExpertCounts(table, file))
        return model

    return build


@pytest.mark.parametrize(("count", "slots"), [(0, 40), (1, 35), (3, 5), (7, 5)])
def test_both_sides_together_are_the_whole(split, tiny_folder, count, slots):
    expected = fourfold.load(tiny_folder)(IDS, mtp=True)
    got = split(count, slots)(IDS, mtp=True)
    assert distance(got.logits, expected.logits).typical < 1e-4
    assert distance(got.mtp_logits, expected.mtp_logits).typical < 1e-4


def test_chunks_give_the_same_bits(split):
    model = split(3, 8)
    whole = model(IDS).logits
    cache = model.new_cache()
    parts = [model(part, cache=cache).logits for part in IDS.split([13, 1, 46], 1)]
    assert torch.equal(torch.cat(parts, 1), whole)


def test_each_needed_expert_is_counted_on_its_side(split):
    model = split(4, 20)
    model(IDS)
    stats = model.tiers.stats()
    assert (stats.on_device, stats.slots, stats.experts) == (20, 20, 40)
    assert 0 < stats.device_hits <= 16 and 0 < stats.hits + stats.prefetched + stats.misses <= 16
    model(IDS)
    later = model.tiers.stats() - stats
    assert later.device_hits == stats.device_hits and later.misses == later.bytes_read == 0


def test_experts_of_the_device_are_never_read(split):
    model = split(4, 20)
    model(IDS)
    assert not ((model.tiers.cache.slot.reshape(5, 8) >= 0) & model.tiers.on_device.held).any()


def test_of_layers_routed_by_id_the_busiest_are_on_the_device(tiny_folder):
    model = fourfold.load(tiny_folder)
    where = busiest(model, table_of(tiny_folder), 2, np.zeros((5, 8), dtype=np.int64))
    table = model.state_dict()["layers.0.ffn.gate.tid2eid"]
    counts = np.bincount(table.flatten().numpy(), minlength=8)
    assert counts[where.held[0]].min() >= counts[~where.held[0]].max()
    assert where.held.sum(1).tolist() == [2] * 5 and where.held[3, :2].all()


def test_the_most_used_are_on_the_device(tiny_folder):
    uses = np.array([[5, 0, 7, 0, 6, 0, 0, 0]] * 5)
    where = busiest(fourfold.load(tiny_folder), table_of(tiny_folder), 2, uses)
    assert np.flatnonzero(where.held[3]).tolist() == [2, 4] == np.flatnonzero(where.held[0]).tolist()
    assert where.share(uses) == pytest.approx(13 / 18)


def test_a_run_places_by_what_earlier_ones_counted(split, tmp_path, capsys):
    file = tmp_path / "counts.json"
    first = split(3, 25, file)
    expected = first(IDS).logits
    first.tiers.close()
    again = split(3, 25, file)
    counted = first.tiers.uses.now
    assert counted[:4].sum() == 4 * 2 * IDS.numel() and np.array_equal(again.tiers.uses.before, counted)
    for layer, held in zip(counted, again.tiers.on_device.held, strict=True):
        assert layer[held].min() >= layer[~held].max()
    share = again.tiers.on_device.share(counted)
    assert share > first.tiers.on_device.share(counted)
    assert f"the device's experts have {share:.0%} of the uses counted so far" in capsys.readouterr().err
    assert distance(again(IDS).logits, expected).typical < 1e-4


def test_rows_are_numbered_in_order():
    held = np.array([[True, False, True, False]])
    assert OnDevice(held, torch.device("cpu")).rows(0).tolist() == [0, -1, 1, -1]
