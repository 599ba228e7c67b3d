from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError
from fourfold.kernels.formats import decode
from fourfold.weights import writer
from fourfold.weights.export import export_checkpoint, official_tensors
from fourfold.weights.load import read_checkpoint
from fourfold.weights.names import scale_name
from fourfold.weights.shards import write_file
from fourfold.weights.writer import write_checkpoint
from tests.weights.raw import GOLDEN, Raw, read_folder, read_raw, rewritten, same_bits

CONFIG = ModelConfig.from_file(GOLDEN)


def values(folder: Path) -> dict[str, torch.Tensor]:
    """Every weight of a checkpoint in float32, by official name."""
    stored = {k: v for file in folder.glob("model*.safetensors") for k, v in load_file(file).items()}
    scales = {name: stored.get(scale_name(name)) for name in stored if name.endswith(".weight")}
    return {n: decode(t, scales.get(n)) for n, t in stored.items() if not n.endswith(".scale")}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The golden checkpoint as it is, with FP8 experts, all in bf16, and that back in FP4 and FP8."""
    folder = tmp_path_factory.mktemp("exported")
    small = {"progress": False, "shard_size": 4_000_000}
    return {
        "keep": export_checkpoint(GOLDEN, folder / "keep", **small),
        "fp8": export_checkpoint(GOLDEN, folder / "fp8", experts="fp8", **small),
        "bf16": export_checkpoint(GOLDEN, folder / "bf16", experts="bf16", linears="bf16", **small),
        "back": export_checkpoint(folder / "bf16", folder / "back", experts="fp4", linears="fp8", **small),
    }


def test_untouched_tensors_keep_every_bit(exported):
    assert read_folder(exported["keep"]) == read_raw(GOLDEN / "model.safetensors")
    assert ModelConfig.from_file(exported["keep"]) == CONFIG


@pytest.mark.parametrize("form", ["fp8", "bf16", "back"])
def test_conversions_of_representable_values_lose_nothing(exported, form):
    expected = values(GOLDEN)
    for name, value in values(exported[form]).items():
        assert torch.equal(value, expected.pop(name)), name
    assert not expected


@pytest.mark.parametrize(("form", "expert_dtype"), [("keep", "fp4"), ("fp8", "fp8"), ("bf16", "bf16")])
def test_config_says_what_the_tensors_are(exported, form, expert_dtype):
    data = json.loads((exported[form] / "config.json").read_text())
    assert data["expert_dtype"] == expert_dtype
    assert ("quantization_config" in data) == (form != "bf16")
    stored = read_folder(exported[form])
    assert {v[0] for k, v in stored.items() if ".experts." in k and k.endswith("weight")} == {
        {"fp4": "I8", "fp8": "F8_E4M3", "bf16": "BF16"}[expert_dtype]
    }
    assert len(dict(read_checkpoint(exported[form], ModelConfig.from_json(data)))) > 100


def test_shards_respect_size_and_index_lists_every_tensor(exported):
    folder = exported["keep"]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(folder.glob("*.safetensors"))
    assert [file.name for file in shards] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert index["weight_map"].keys() == read_folder(folder).keys()
    assert index["metadata"]["total_size"] == sum(len(v[2]) for v in read_folder(folder).values())
    for file in shards:
        assert sum(len(v[2]) for v in read_raw(file).values()) <= 4_000_000
        for name in load_file(file):  # the safetensors library reads what we write
            assert index["weight_map"][name] == file.name


@pytest.mark.parametrize("form", ["keep", "fp8", "bf16"])
def test_transformers_loads_what_we_write(exported, form):
    transformers = pytest.importorskip("transformers", reason="install the dev extra")
    expected = load_file(GOLDEN / "expected.safetensors")
    packed = {"quantization_config": transformers.FineGrainedFP8Config(dequantize=True)}
    model = transformers.DeepseekV4ForCausalLM.from_pretrained(
        exported[form],
        dtype=torch.float32,
        attn_implementation="eager",
        **({} if form == "bf16" else packed),
    )
    with torch.no_grad():
        logits = model.float().eval()(expected["input_ids"][:, :300]).logits[:, -1]
    assert (logits - expected["logits"][:, 0]).abs().max() < 1e-4


def test_fp4_that_fp8_cannot_hold_is_refused_and_nothing_is_left(tmp_path: Path):
    name = "layers.2.ffn.experts.3.w1.scale"

    def widen(tensors: Raw) -> None:
        dtype, shape, data = tensors[name]
        tensors[name] = (dtype, shape, data[:100] + bytes([data[100] - 40]) + data[101:])

    source = rewritten(GOLDEN, tmp_path / "wide", widen)
    with pytest.raises(
        CheckpointError, match=r"experts\.3\.w1\.weight: cannot .*rows 0-127, columns 128-255"
    ):
        export_checkpoint(source, tmp_path / "out", experts="fp8", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]
    export_checkpoint(source, tmp_path / "out", experts="bf16", progress=False)


def test_fp4_with_float32_scales_is_refused_where_they_are_no_powers_of_two(tmp_path: Path):
    def scaled(value: float):
        def change(tensors: Raw) -> None:
            scales = torch.full((128, 8), value)
            tensors["layers.2.ffn.experts.3.w1.scale"] = ("F32", [128, 8], scales.numpy().tobytes())

        return change

    odd = rewritten(GOLDEN, tmp_path / "odd", scaled(0.3))
    with pytest.raises(CheckpointError, match=r"experts\.3\.w1\.weight: cannot become FP8 without loss"):
        export_checkpoint(odd, tmp_path / "out", experts="fp8", progress=False)
    even = rewritten(GOLDEN, tmp_path / "even", scaled(0.25))
    export_checkpoint(even, tmp_path / "out", experts="fp8", progress=False)


def test_values_that_are_no_numbers_are_not_converted(tmp_path: Path):
    def spoil(tensors: Raw) -> None:
        name = "layers.1.attn.wkv.weight"
        dtype, shape, data = tensors[name]
        tensors[name] = (dtype, shape, b"\x7f" + data[1:])  # e4m3's NaN

    source = rewritten(GOLDEN, tmp_path / "spoilt", spoil)
    with pytest.raises(CheckpointError, match=r"layers\.1\.attn\.wkv\.weight: has values that are no finite"):
        export_checkpoint(source, tmp_path / "out", linears="bf16", progress=False)


def test_destination_must_be_free_or_overwriting_allowed(tmp_path: Path):
    target = tmp_path / "out"
    target.mkdir()
    export_checkpoint(GOLDEN, target, progress=False)
    with pytest.raises(CheckpointError, match="out: exists and is not empty; give another folder or allow"):
        export_checkpoint(GOLDEN, target, progress=False)
    export_checkpoint(GOLDEN, target, progress=False, overwrite=True)
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]
    export_checkpoint(target, target, experts="fp8", progress=False, overwrite=True)
    assert ModelConfig.from_file(target).expert_dtype == "fp8"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        export_checkpoint(GOLDEN, tmp_path / "file", progress=False, overwrite=True)


@pytest.mark.parametrize("foreign", ["README.md", "expected.safetensors", ".git/", "tokenizer.json/"])
def test_overwriting_replaces_nothing_but_checkpoints(tmp_path: Path, foreign):
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("{}")
    path = target / foreign
    if foreign.endswith("/"):
        path.mkdir()
    else:
        path.write_text("text")
    with pytest.raises(CheckpointError, match=f"out: holds {path.name}, which would be lost"):
        export_checkpoint(GOLDEN, target, progress=False, overwrite=True)
    assert {file.name for file in target.iterdir()} == {"config.json", path.name}
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_file_that_appears_while_it_is_written_is_not_lost(tmp_path: Path, monkeypatch):
    target = export_checkpoint(GOLDEN, tmp_path / "out", progress=False)

    def write_and_meddle(*arguments: Any) -> list[str]:
        (target / "notes.txt").write_text("text")
        return write_file(*arguments)

    monkeypatch.setattr(writer, "write_file", write_and_meddle)
    with pytest.raises(CheckpointError, match=r"holds notes\.txt"):
        export_checkpoint(GOLDEN, target, experts="fp8", progress=False, overwrite=True)
    assert (target / "notes.txt").read_text() == "text"
    assert ModelConfig.from_file(target) == CONFIG


def test_a_link_to_the_folder_stays_one(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real", target_is_directory=True)
    export_checkpoint(GOLDEN, tmp_path / "link", progress=False, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert ModelConfig.from_file(tmp_path / "real") == CONFIG
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError("disk is full"), MemoryError])
def test_an_export_that_is_stopped_leaves_what_was_there(tmp_path: Path, monkeypatch, stop):
    target = export_checkpoint(GOLDEN, tmp_path / "out", progress=False)
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    def write_half(file: Path, *_: object) -> list[str]:
        file.write_bytes(b"half")
        raise stop

    monkeypatch.setattr(writer, "write_file", write_half)
    for folder in (target, tmp_path / "new"):
        with pytest.raises((KeyboardInterrupt, MemoryError, CheckpointError)):
            export_checkpoint(GOLDEN, folder, progress=False, overwrite=True)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_tokenizer_and_licence_come_along(tiny_folder: Path, tmp_path: Path):
    source = export_checkpoint(tiny_folder, tmp_path / "a", progress=False)
    (source / "LICENSE").write_text("MIT")
    (source / "notes.txt").write_text("private")
    copied = export_checkpoint(source, tmp_path / "b", progress=False)
    names = {path.name for path in copied.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "LICENSE"}
    assert (copied / "tokenizer.json").read_bytes() == (tiny_folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("option", [{"experts": "int4"}, {"linears": "fp4"}])
def test_unknown_formats_are_refused(option, tmp_path: Path):
    with pytest.raises(CheckpointError, match="allowed: keep, "):
        export_checkpoint(GOLDEN, tmp_path / "out", progress=False, **option)


@pytest.fixture(scope="module")
def parameters() -> dict[str, torch.Tensor]:
    """The golden model as a trainer would hold it: float32, experts stacked, no scales."""
    stored = dict(read_checkpoint(GOLDEN, CONFIG))
    scales = {name: stored.get(scale_name(name)) for name in stored if name.endswith(".weight")}
    return {
        name: tensor if tensor.dtype == torch.int64 else decode(tensor, scales.get(name))
        for name, tensor in stored.items()
        if not name.endswith(".scale")
    }


def test_a_model_in_training_becomes_an_official_checkpoint(parameters, tmp_path: Path):
    tensors = official_tensors(CONFIG, parameters)
    folder = write_checkpoint(tmp_path / "out", CONFIG, tensors, side_files_from=GOLDEN)
    assert ModelConfig.from_file(folder) == CONFIG
    expected = values(GOLDEN)
    written = load_file(folder / "model.safetensors")
    stored = load_file(GOLDEN / "model.safetensors")
    for name, value in values(folder).items():
        assert torch.equal(value, expected[name])
        assert written[name].dtype == stored[name].dtype
    assert same_bits(written["embed.weight"], stored["embed.weight"])


def test_what_does_not_fit_the_config_is_refused(parameters, tmp_path: Path):
    norm = parameters["norm.weight"]
    rest = {name: tensor for name, tensor in parameters.items() if name != "norm.weight"}
    with pytest.raises(CheckpointError, match=r"has no norm\.weight"):
        list(official_tensors(CONFIG, rest))
    with pytest.raises(CheckpointError, match=r"norm\.weight: shape is \[255\]; expected: \[256\]"):
        list(official_tensors(CONFIG, rest | {"norm.weight": norm[1:]}))
    with pytest.raises(CheckpointError, match=r"float64 cannot be stored"):
        write_checkpoint(tmp_path / "out", CONFIG, [("norm.weight", norm.double())])
    with pytest.raises(CheckpointError, match="missing tensors: embed"):
        write_checkpoint(tmp_path / "out", CONFIG, [("norm.weight", norm)])
    assert not list(tmp_path.iterdir())
