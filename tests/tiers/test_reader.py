"""Experts arrive byte for byte, however they lie on disk."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError
from fourfold.tiers import reader as reading
from fourfold.tiers.copy import copied
from fourfold.tiers.reader import ExpertReader
from fourfold.tiers.slots import SlotPool
from fourfold.weights.load import checkpoint_items, read_checkpoint
from fourfold.weights.synth import synthesise
from tests.tiers.conftest import table_of


@pytest.fixture(scope="module")
def aligned_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligned") / "model"
    small = {"vocab_size": 64, "num_nextn_predict_layers": 0, "moe_intermediate_size": 1024}
    small |= {"q_lora_rank": 64, "o_lora_rank": 64, "num_attention_heads": 8, "head_dim": 64, "o_groups": 2}
    synthesise(folder, layers=1, experts=2, hidden=256, overrides=small, progress=False)
    return folder


def check_all(table, folder):
    """Every expert, in slot 1 of 2, is what the loader reads."""
    config = ModelConfig.from_file(folder / "config.json")
    wanted = dict(read_checkpoint(folder, config, progress=False))
    reader, pool = ExpertReader(table), SlotPool(table.parts, 2)
    buffer = reader.buffer()
    for expert in range(table.experts):
        for piece in range(len(reader.pieces)):
            reader.read(expert, piece, pool.row(1), buffer)
        for name, stack in pool.stacks.items():
            layer = table.layers[expert // table.per_layer]
            row = wanted[f"{layer}.{name}"][expert % table.per_layer]
            assert torch.equal(stack[1].view(torch.uint8), row.view(torch.uint8)), (expert, name)
        assert not any(part.any() for part in pool.row(0))
    reader.close()


@pytest.mark.parametrize("size", [4096, 3 * 4096, 1 << 20])
def test_from_safetensors_through_buffers_of_any_size(tiny_folder, monkeypatch, size):
    monkeypatch.setattr(reading, "BUFFER", size)
    check_all(table_of(tiny_folder), tiny_folder)


def test_from_the_copy(tiny_folder, tmp_path):
    check_all(copied(table_of(tiny_folder), tmp_path), tiny_folder)


def test_whole_pages_go_straight_into_the_slot(aligned_folder, tmp_path, monkeypatch):
    table = copied(table_of(aligned_folder), tmp_path)
    monkeypatch.setattr(reading, "_through_buffer", None)
    check_all(table, aligned_folder)


def test_broken_scales_are_told(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = ModelConfig.from_file(folder / "config.json")
    items = checkpoint_items(folder, config)
    item = next(i for i in items if i.expert is not None and i.parameter.endswith("w2.scale"))
    with item.stored.file.open("r+b") as stream:
        stream.seek(item.stored.start + 3)
        stream.write(b"\xff")
    table = table_of(folder)
    reader, pool = ExpertReader(table), SlotPool(table.parts, 1)
    w2 = len(reader.pieces) - 1
    reader.read(1, w2, pool.row(0), reader.buffer())
    with pytest.raises(CheckpointError, match=r"layers\.0\.ffn\.experts\.0\.w2\.scale has scales that are"):
        reader.read(0, w2, pool.row(0), reader.buffer())


def test_float_scales_are_checked_too():
    good = np.array([1.0, 0.5], dtype=np.float32)
    for bad in (0.0, -1.0, np.inf, np.nan):
        assert not reading._sound(np.array([1.0, bad], dtype=np.float32).view(np.uint8), torch.float32)
    assert reading._sound(good.view(np.uint8), torch.float32)


def test_refused_direct_reads_are_told(tiny_folder, monkeypatch, capfd):
    monkeypatch.setattr("fourfold.tiers.files._DIRECT", 0)
    check_all(table_of(tiny_folder), tiny_folder)
    assert "refuses direct reads (O_DIRECT)" in capfd.readouterr().err
