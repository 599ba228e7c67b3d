"""Adapter folders: what is written is read, and what is not as it should be is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError, ConfigError
from fourfold.weights.adapter import (
    CONFIG,
    TENSORS,
    StoredAdapter,
    adaptable,
    base_fingerprint,
    read_adapter,
    targets,
    write_adapter,
)
from fourfold.weights.export import export_checkpoint
from tests.adapters import random_adapter

EXPERT = "base_model.model.layers.1.ffn.experts.3.w1.lora_A.weight"
ATTENTION = "base_model.model.layers.1.attn.wq_b.lora_B.weight"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return random_adapter(tiny_folder, tmp_path / "adapter", ("layers.1.*",))


def test_what_is_written_is_read(tiny_folder: Path, tmp_path: Path) -> None:
    config = ModelConfig.from_file(tiny_folder)
    matrices = {
        "layers.0.attn.wq_a": (torch.randn(2, 128), torch.randn(64, 2).bfloat16()),
        "layers.2.ffn.experts.w2": (torch.randn(8, 2, 64), torch.randn(8, 128, 2)),
    }
    adapter = StoredAdapter(2, 3.0, matrices)
    write_adapter(tmp_path / "a", adapter, base_fingerprint(tiny_folder), "tiny")
    again = read_adapter(tmp_path / "a", config, base_fingerprint(tiny_folder))
    assert again.scale == 1.5 and again.matrices.keys() == matrices.keys()
    assert all(
        torch.equal(a, b) for m in matrices for a, b in zip(again.matrices[m], matrices[m], strict=True)
    )
    assert again.digest == adapter.digest
    assert StoredAdapter(2, 4.0, matrices).digest != adapter.digest
    a, b = (part[5] for part in matrices["layers.2.ffn.experts.w2"])
    assert torch.equal(again.change("layers.2.ffn.experts.5.w2.weight"), b @ a * 1.5)
    assert not again.touches("layers.2.ffn.experts.5.w1.weight")
    written = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert written["peft_type"] == "LORA" and written["target_modules"] == ["w2", "wq_a"]
    assert "base_model.model.layers.2.ffn.experts.7.w2.lora_B.weight" in load_file(tmp_path / "a" / TENSORS)


def test_patterns_name_matrices(tiny_folder: Path) -> None:
    config = ModelConfig.from_file(tiny_folder)
    assert list(targets(config, ("layers.2.attn.w?_a", "layers.0.*w1"))) == [
        "layers.0.ffn.shared_experts.w1", "layers.0.ffn.experts.w1", "layers.2.attn.wq_a",
        "layers.2.attn.wo_a",
    ]  # fmt: skip
    assert len(adaptable(config)) == 4 * 11
    with pytest.raises(ConfigError, match=r"target '\*.gate' names no matrix; allowed: layers.\*.attn.wq_a"):
        targets(config, ("*.attn.*", "*.gate"))


def test_the_fingerprint_is_the_weights_and_not_the_files(tiny_folder: Path, tmp_path: Path) -> None:
    export_checkpoint(tiny_folder, tmp_path / "cut", shard_size=200_000, progress=False)
    assert base_fingerprint(tmp_path / "cut") == base_fingerprint(tiny_folder)
    shutil.copytree(tiny_folder, tmp_path / "changed")
    file = tmp_path / "changed" / "model.safetensors"
    tensors = load_file(file)
    weight = tensors["layers.3.ffn.experts.2.w3.weight"]
    tensors["layers.3.ffn.experts.2.w3.weight"] = weight ^ 1
    save_file(tensors, file)
    assert base_fingerprint(tmp_path / "changed") != base_fingerprint(tiny_folder)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = json.loads((folder / CONFIG).read_text())
        change(data)
        (folder / CONFIG).write_text(json.dumps(data))

    return apply


def stored(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        change(tensors)
        save_file(tensors, folder / TENSORS)

    return apply


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda folder: (folder / CONFIG).unlink(), "cannot be read"),
        (lambda folder: (folder / CONFIG).write_text("{"), "cannot be read"),
        (edited(lambda c: c.update(peft_type="IA3")), "peft_type is not"),
        (edited(lambda c: c.update(r=0)), "r is 0"),
        (edited(lambda c: c.update(r=True)), "r is True"),
        (edited(lambda c: c.update(lora_alpha=-1)), "lora_alpha -1"),
        (edited(lambda c: c.update(use_rslora=True)), "use_rslora is True, which this version"),
        (edited(lambda c: c.update(bias="all")), "bias is 'all'"),
        (edited(lambda c: c.update(rank_pattern={"wq_a": 3})), "rank_pattern is"),
        (edited(lambda c: c.pop("fourfold")), "made for another base"),
        (edited(lambda c: c.update(fourfold={"base": "0"})), "made for another base"),
        (lambda folder: (folder / TENSORS).unlink(), "cannot be read"),
        (stored(lambda t: t.pop(EXPERT)), f"lacks {EXPERT}"),
        (stored(lambda t: t.pop(ATTENTION)), f"lacks {ATTENTION}"),
        (stored(lambda t: t.update({ATTENTION: t[ATTENTION][:-1]})), "allowed: F32 or BF16"),
        (stored(lambda t: t.update({ATTENTION: t[ATTENTION].to(torch.int32)})), "allowed: F32 or BF16"),
        (stored(lambda t: t.update({EXPERT: t[EXPERT].bfloat16()})), "of several types"),
        (stored(lambda t: t[EXPERT].fill_(torch.inf)), "no finite numbers"),
        (stored(lambda t: t.update({"other": torch.zeros(1)})), "other is no tensor of an adapter"),
        (stored(lambda t: t.update({f"{ATTENTION[:-20]}.lora_A.weight": torch.zeros(1)})), "adapts"),
        (stored(lambda t: t.clear()), "adapts nothing"),
    ],
)
def test_what_is_malformed_is_refused(
    tiny_folder: Path, folder: Path, break_it: Callable[[Path], None], told: str
) -> None:
    break_it(folder)
    with pytest.raises(CheckpointError, match=told):
        read_adapter(folder, ModelConfig.from_file(tiny_folder), base_fingerprint(tiny_folder))


def test_keys_of_peft_without_effect_are_read(tiny_folder: Path, folder: Path) -> None:
    edited(lambda c: c.update(use_dora=False, layers_pattern=None, modules_to_save=[], alpha_pattern={}))(
        folder
    )
    read_adapter(folder, ModelConfig.from_file(tiny_folder), base_fingerprint(tiny_folder))


def test_nothing_else_is_overwritten(tiny_folder: Path, folder: Path) -> None:
    random_adapter(tiny_folder, folder, seed=1)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds notes\.txt"):
        random_adapter(tiny_folder, folder)
