"""Checkpoints as ModelSlim and vllm-ascend write them: loaded as they are, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError
from fourfold.weights.export import export_checkpoint, export_recipe
from fourfold.weights.inspect import inspect_checkpoint
from fourfold.weights.load import read_checkpoint
from fourfold.weights.modelslim import DESCRIPTION
from tests.weights.raw import Raw, read_folder, read_raw, same_bits, write_raw

EXPERT = "layers.1.ffn.experts.3.w2"
KINDS = {"I8": "W8A8_DYNAMIC", "U64": "W4A8_DYNAMIC"}


def as_modelslim(src: Path, dst: Path) -> Path:
    """What vllm-ascend's script would have made of the same codes: its names, shapes and side files."""
    tensors = read_raw(src / "model.safetensors")
    stored: Raw = {}
    description: dict[str, Any] = {
        "version": "1.0.0", "model_quant_type": "W8A8_DYNAMIC", "group_size": 0, "metadata": {},
    }  # fmt: skip
    for name, (dtype, shape, data) in tensors.items():
        module, _, leaf = name.rpartition(".")
        scale = tensors.get(f"{module}.scale")
        kind = "FLOAT" if scale is None else KINDS.get(scale[0], "W8A8_DYNAMIC")
        if leaf == "scale":
            values = data if dtype == "F32" else b"".join(data[i : i + 4] for i in range(0, len(data), 8))
            stored[f"{module}.weight_scale"] = ("F32", shape, values)
            stored[f"{module}.weight_offset"] = ("F32", shape, bytes(len(values)))
            description |= dict.fromkeys((f"{module}.weight_scale", f"{module}.weight_offset"), kind)
        elif leaf == "bias" and scale is not None:
            slices = 16 if module.endswith("w2") else 1
            stored[f"{module}.scale_bias"] = ("F32", [*shape, slices], data * slices)
            description[f"{module}.scale_bias"] = kind
        else:
            stored[name] = (dtype, shape, data)
            description[name] = kind
    for name, copy in (("embed.weight", "mtp.0.emb.tok_emb.weight"), ("head.weight", "mtp.0.head.weight")):
        stored[copy], description[copy] = stored[name], "FLOAT"
    dst.mkdir()
    half = len(stored) // 2
    weight_map: dict[str, str] = {}
    for number, names in enumerate((list(stored)[:half], list(stored)[half:]), start=1):
        file = f"quant_model_weights-0000{number}-of-00002.safetensors"
        write_raw(dst / file, {name: stored[name] for name in names})
        weight_map |= dict.fromkeys(names, file)
    (dst / "quant_model_weights.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (dst / DESCRIPTION).write_text(json.dumps(description))
    config = json.loads((src / "config.json").read_text())
    del config["quantization_config"]
    (dst / "config.json").write_text(json.dumps(config | {"expert_dtype": "fp4"}))
    return dst


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("modelslim")
    for recipe in ("w8a8", "w4a8"):
        export_recipe(tiny_folder, root / recipe, recipe, progress=False)
        as_modelslim(root / recipe, root / f"{recipe}-modelslim")
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8"])
def test_the_same_weights_in_the_other_spelling(folders, recipe, tmp_path: Path):
    spelled = folders[f"{recipe}-modelslim"]
    ours, theirs = (
        dict(read_checkpoint(folder, ModelConfig.from_file(folder))) for folder in (folders[recipe], spelled)
    )
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        bits = name.endswith("scale") and recipe == "w4a8" and ".ffn.experts." in name
        assert same_bits(theirs[name], tensor) or (bits and theirs[name].shape == tensor.shape), name
    assert inspect_checkpoint(spelled).expert_format == {"w8a8": "int8", "w4a8": "int4"}[recipe]
    kept = export_checkpoint(spelled, tmp_path / "official", progress=False)
    assert read_folder(kept) == read_folder(folders[recipe])
    assert (kept / "config.json").read_bytes() == (folders[recipe] / "config.json").read_bytes()


def damaged(
    folders: dict[str, Path],
    target: Path,
    tensors: Callable[[Raw], object] = lambda _: None,
    description: Callable[[dict[str, Any]], object] = lambda _: None,
) -> Path:
    """A copy of the w4a8 folder with changes to its second shard and its description."""
    target.mkdir()
    for file in folders["w4a8-modelslim"].iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    index = json.loads((target / "quant_model_weights.safetensors.index.json").read_text())
    for number in (1, 2):
        shard = f"quant_model_weights-0000{number}-of-00002.safetensors"
        raw = read_raw(target / shard)
        tensors(raw)
        write_raw(target / shard, raw)
        index["weight_map"] |= dict.fromkeys(raw, shard)
    (target / "quant_model_weights.safetensors.index.json").write_text(json.dumps(index))
    data = json.loads((target / DESCRIPTION).read_text())
    description(data)
    (target / DESCRIPTION).write_text(json.dumps(data))
    return target


def set_first_byte(name: str) -> Callable[[Raw], object]:
    def change(tensors: Raw) -> None:
        if name in tensors:
            dtype, shape, data = tensors[name]
            tensors[name] = (dtype, shape, bytes([data[0] ^ 1]) + data[1:])

    return change


@pytest.mark.parametrize(
    ("tensors", "description", "message"),
    [
        (None, {f"{EXPERT}.weight": "W4A8_MXFP"}, rf"{EXPERT}.weight is 'W4A8_MXFP'; allowed: FLOAT, W8A8"),
        (None, {f"{EXPERT}.weight": "FLOAT"}, r"stored as int4; quant_model_description.json says bf16 or"),
        (None, {"group_size": 256}, r"group_size is 256; allowed: 0"),
        (None, {"version": "2"}, r"version is '2'; allowed: '1.0.0'"),
        (None, {"optional": {"quarot": {"max_tp_size": 4}}}, r"optional is .*quarot.*; allowed: \{\}"),
        (None, {"embed.weight": ...}, r"does not say how .*: embed.weight is stored"),
        (set_first_byte(f"{EXPERT}.weight_offset"), {}, r"w2.weight_offset: has offsets that are not 0"),
        (set_first_byte("mtp.0.head.weight"), {}, r"mtp.0.head.weight: differs from .*: head.weight"),
        (lambda t: t.update({"engram.weight": ("BF16", [1], b"\0\0")}), {}, "engram"),
    ],
)  # fmt: skip
def test_what_we_do_not_compute_is_refused_by_name(folders, tmp_path: Path, tensors, description, message):
    def describe(data: dict[str, Any]) -> None:
        data.update(description)
        for name in [name for name, value in data.items() if value is ...]:
            del data[name]

    folder = damaged(folders, tmp_path / "damaged", tensors or (lambda _: None), describe)
    with pytest.raises(CheckpointError, match=message):
        dict(read_checkpoint(folder, ModelConfig.from_file(folder)))


def test_a_broken_description_and_two_indices(folders, tmp_path: Path):
    folder = damaged(folders, tmp_path / "damaged")
    config = ModelConfig.from_file(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match=r"several indices, model\.safetensors\.index\.json, quant"):
        dict(read_checkpoint(folder, config))
    (folder / "model.safetensors.index.json").unlink()
    for text, message in (("{", "cannot be read"), ("[]", "must hold an object, found list")):
        (folder / DESCRIPTION).write_text(text)
        with pytest.raises(CheckpointError, match=message):
            dict(read_checkpoint(folder, config))
