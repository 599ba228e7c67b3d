"""Conversion by recipe: what becomes what, on disk and in memory; interrupted, it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fourfold
from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError, ConfigError
from fourfold.kernels import cpu
from fourfold.kernels.formats import decode
from fourfold.weights import writer
from fourfold.weights.export import export_checkpoint, export_recipe
from fourfold.weights.inspect import inspect_checkpoint
from fourfold.weights.layout import check_layout
from fourfold.weights.load import checkpoint_items, read_checkpoint
from fourfold.weights.names import checkpoint_spec, scale_name
from fourfold.weights.recipes import left_out, recipe_format
from fourfold.weights.shards import write_file
from tests.weights.raw import Raw, read_folder, rewritten, same_bits

SMALL = {"progress": False, "shard_size": 500_000}


@pytest.fixture(scope="module")
def config(tiny_folder: Path) -> ModelConfig:
    return ModelConfig.from_file(tiny_folder)


@pytest.fixture(scope="module")
def converted(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint by each recipe."""
    folder = tmp_path_factory.mktemp("converted")
    for recipe in ("w8a8", "w4a8", "bf16"):
        export_recipe(tiny_folder, folder / recipe, recipe, **SMALL)
    return {path.name: path for path in folder.iterdir()}


def test_the_recipes_lists(config):
    spec = checkpoint_spec(config)
    formats = {
        recipe: {n: recipe_format(recipe, n, s) for n, s in spec.items()} for recipe in ("w8a8", "w4a8")
    }
    names = {
        "layers.2.attn.wq_a": ("bf16", "bf16"), "layers.2.attn.wq_b": ("int8", "int8"),
        "layers.2.attn.wkv": ("bf16", "bf16"), "layers.2.attn.wo_a": ("bf16", "bf16"),
        "layers.2.attn.wo_b": ("int8", "int8"), "layers.2.attn.indexer.wq_b": ("int8", "int8"),
        "layers.2.attn.indexer.weights_proj": (None, None), "layers.2.attn.compressor.wkv": (None, None),
        "layers.0.ffn.gate": (None, None), "layers.0.ffn.experts.1.w2": ("int8", "int4"),
        "layers.0.ffn.shared_experts.w2": ("int8", "int8"), "mtp.0.e_proj": ("int8", "int8"),
        "mtp.0.h_proj": ("int8", "int8"), "mtp.0.ffn.experts.0.w1": ("int8", "int4"), "head": (None, None),
        "embed": (None, None),
    }  # fmt: skip
    for name, expected in names.items():
        assert (formats["w8a8"][f"{name}.weight"], formats["w4a8"][f"{name}.weight"]) == expected
    integers = {name for name, fmt in formats["w8a8"].items() if fmt == "int8"}
    ignored = list(left_out(spec, integers))
    assert {"layers.2.attn.indexer.compressor.wgate", "mtp.0.attn.wo_a", "mtp.0.head", "head"} <= {*ignored}
    assert not {"layers.2.attn.wq_b", "layers.0.ffn.gate", "layers.0.attn.q_norm", "embed"} & {*ignored}


def test_tensors_on_disk_are_the_recipes(converted, config):
    stored = read_folder(converted["w4a8"])
    shapes = {name: (dtype, shape) for name, (dtype, shape, _) in stored.items()}
    rows, columns = checkpoint_spec(config)["layers.0.ffn.experts.1.w2.weight"].shape
    expert = "layers.0.ffn.experts.1.w2"
    assert shapes[f"{expert}.weight"] == ("I8", [rows // 2, columns])
    assert shapes[f"{expert}.scale"] == ("U64", [rows, 1])
    assert shapes[f"{expert}.bias"] == ("F32", [rows])
    rows, columns = checkpoint_spec(config)["mtp.0.attn.wq_b.weight"].shape
    assert shapes["mtp.0.attn.wq_b.weight"] == ("I8", [rows, columns])
    assert shapes["mtp.0.attn.wq_b.scale"] == ("F32", [rows, 1])
    assert "mtp.0.attn.wq_b.bias" not in shapes
    assert shapes["layers.0.attn.wo_a.weight"][0] == "BF16"
    assert "layers.0.attn.wo_a.scale" not in shapes
    codes, scale = load_file_parts(converted["w4a8"], expert)
    assist = torch.frombuffer(bytearray(stored[f"{expert}.bias"][2]), dtype=torch.float32)
    assert torch.allclose(assist, 8 * decode(codes, scale).sum(-1), rtol=1e-4, atol=1e-4)


def load_file_parts(folder: Path, module: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and scale as the safetensors library reads them, in our memory layout."""
    stored = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    scale = stored[f"{module}.scale"]
    assert scale.dtype == torch.uint64
    return stored[f"{module}.weight"].view(torch.uint8), scale.view(torch.int64)[:, 0]


@pytest.mark.parametrize(("recipe", "worst"), [("w8a8", 0.012), ("w4a8", 0.16), ("bf16", 0.0)])
def test_weights_come_back_within_the_reported_error(converted, recipe, worst, tiny_folder):
    original, stored = (
        dict(read_checkpoint(folder, ModelConfig.from_file(folder)))
        for folder in (tiny_folder, converted[recipe])
    )
    for name in (name for name in original if name.endswith(".weight")):
        expected = decode(original[name], original.get(scale_name(name)))
        got = decode(stored[name], stored.get(scale_name(name)))
        assert float((got - expected).norm() / expected.norm()) <= worst, name
    assert all(same_bits(stored[name], original[name]) for name in original if "norm" in name)


def test_config_json_says_it_and_is_read_back(converted, config):
    data = {recipe: json.loads((path / "config.json").read_text()) for recipe, path in converted.items()}
    assert [data[recipe]["expert_dtype"] for recipe in ("w8a8", "w4a8", "bf16")] == ["int8", "int4", "bf16"]
    assert "quantization_config" not in data["bf16"]
    quantization = data["w4a8"]["quantization_config"]
    assert quantization["quant_method"] == "compressed-tensors"
    assert quantization["config_groups"]["group_1"]["weights"]["num_bits"] == 4
    assert quantization["config_groups"]["group_1"]["targets"] == ["MoEGMM"]
    assert "layers.1.attn.wq_a" in quantization["ignore"]
    # The recipes' own config.json has the published expert_dtype beside it.
    assert ModelConfig.from_json(data["w4a8"] | {"expert_dtype": "fp4"}).expert_dtype == "int4"
    quantization["config_groups"]["group_1"]["weights"]["strategy"] = "group"
    with pytest.raises(ConfigError, match=r"group_1\.weights is .*; allowed: .*channel"):
        ModelConfig.from_json(data["w4a8"])
    quantization["config_groups"] = {"group_7": {}}
    with pytest.raises(ConfigError, match="config_groups has group_7; allowed: group_0"):
        ModelConfig.from_json(data["w4a8"])
    with pytest.raises(ConfigError, match="unknown keys in quantization_config: sparsity"):
        ModelConfig.from_json(data["w8a8"] | {"quantization_config": {**quantization, "sparsity": {}}})


def test_inspect_counts_them(converted, config):
    report = inspect_checkpoint(converted["w4a8"])
    assert report.expert_format == "int4"
    assert {"int8", "int4", "bf16", "f32"} <= report.bytes_by_format.keys()
    bare = inspect_checkpoint(converted["w4a8"] / "config.json")
    assert bare.bytes_by_format["int4"] == report.bytes_by_format["int4"]
    assert bare.bytes_by_format["bf16"] == report.bytes_by_format["bf16"]


@pytest.mark.parametrize("numerics", ["exact", "deployed", "fast"])
def test_converted_models_answer_nearly_as_before(converted, numerics, config, tiny_folder):
    ids = torch.arange(40).unsqueeze(0) % config.vocab_size
    expected = fourfold.load(tiny_folder, numerics=numerics)(ids).logits
    for recipe, near in (("bf16", 0.3), ("w8a8", 0.3), ("w4a8", 1.0)):
        got = fourfold.load(converted[recipe], numerics=numerics)(ids).logits
        assert float((got - expected).std() / expected.std()) < near, recipe


@pytest.mark.skipif(not cpu.available(), reason="the plain reference does not promise bits")
@pytest.mark.parametrize("numerics", ["exact", "deployed", "fast"])
@pytest.mark.parametrize("recipe", ["w8a8", "w4a8"])
def test_a_tokens_bits_do_not_depend_on_those_after_it(converted, recipe, numerics):
    model = fourfold.load(converted[recipe], numerics=numerics)
    ids = torch.arange(25).unsqueeze(0) * 7 % 400
    with torch.no_grad():
        assert torch.equal(model(ids).logits[:, :9], model(ids[:, :9]).logits)


def test_converted_experts_can_stay_on_disk(converted, capfd):
    for recipe in ("w8a8", "w4a8"):
        items = checkpoint_items(converted[recipe], ModelConfig.from_file(converted[recipe]))
        experts = sum(item.stored.nbytes for item in items if item.expert is not None)
        room = sum(item.stored.nbytes for item in items) - experts // 8
        ids = torch.arange(20).unsqueeze(0)
        model = fourfold.load(converted[recipe], numerics="fast", ram=room)
        assert model.tiers is not None
        expected = fourfold.load(converted[recipe], numerics="fast")(ids).logits
        assert torch.equal(model(ids).logits, expected)
        model.tiers.close()


def test_keeping_a_converted_checkpoint_keeps_every_bit(converted, tmp_path: Path):
    kept = export_checkpoint(converted["w4a8"], tmp_path / "kept", progress=False)
    assert read_folder(kept) == read_folder(converted["w4a8"])


def test_what_is_converted_is_not_converted_again(converted, tmp_path: Path, tiny_folder):
    with pytest.raises(CheckpointError, match=r"wq_b\.weight: is int8 already; convert the original"):
        export_recipe(converted["w8a8"], tmp_path / "out", "bf16", **SMALL)
    with pytest.raises(CheckpointError, match="recipe is 'w2a8'; allowed: w8a8, w4a8, bf16"):
        export_recipe(tiny_folder, tmp_path / "out", "w2a8", **SMALL)
    assert not list(tmp_path.iterdir())


class Stopped(KeyboardInterrupt):
    """The process ends here."""


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch):
    """stop_at(n): the n-th shard from now on is cut in the middle; None lets all pass and counts them."""
    written: list[str] = []

    def set_up(number: int | None) -> list[str]:
        written.clear()

        def write(file: Path, *arguments: object) -> list[str]:
            names = write_file(file, *arguments)
            written.append(file.name)
            if len(written) == number:
                file.write_bytes(file.read_bytes()[:-100])
                raise Stopped
            return names

        monkeypatch.setattr(writer, "write_file", write)
        return written

    return set_up


def test_an_interrupted_conversion_goes_on(converted, tmp_path: Path, stop_at, tiny_folder, config):
    stop_at(3)
    with pytest.raises(Stopped):
        export_recipe(tiny_folder, tmp_path / "out", "w4a8", **SMALL)
    (partial,) = tmp_path.iterdir()
    assert partial.name.startswith("out.partial-")
    shards = sorted(file.name for file in partial.glob("*.safetensors"))
    assert len(shards) == 2
    (partial / shards[0]).write_bytes((partial / shards[0]).read_bytes()[:-1])  # as a full disk leaves it
    written = stop_at(None)
    errors = export_recipe(tiny_folder, tmp_path / "out", "w4a8", **SMALL)
    assert f"{shards[0]}.part" in written
    assert f"{shards[1]}.part" not in written
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert read_folder(tmp_path / "out") == read_folder(converted["w4a8"])
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        file.name for file in converted["w4a8"].iterdir()
    }
    matrices = [n for n, s in checkpoint_spec(config).items() if s.kind in ("expert", "linear")]
    assert sorted(error.name for error in errors) == sorted(matrices)


def test_another_job_begins_anew(tmp_path: Path, stop_at, tiny_folder):
    stop_at(2)
    with pytest.raises(Stopped):
        export_recipe(tiny_folder, tmp_path / "out", "w4a8", **SMALL)
    written = stop_at(None)
    export_recipe(tiny_folder, tmp_path / "out", "w8a8", **SMALL)
    total = len(list((tmp_path / "out").glob("*.safetensors")))
    assert len(written) == total
    names = {path.name.partition("-")[0] for path in tmp_path.iterdir()}
    assert names == {"out", "out.partial"}


def test_importance_is_part_of_the_job_and_of_the_result(
    converted, tmp_path: Path, stop_at, config, tiny_folder
):
    name = "layers.0.ffn.experts.0.w1.weight"
    width = checkpoint_spec(config)[name].shape[1]
    importance = {name: torch.linspace(0, 1, width).square()}
    errors = export_recipe(tiny_folder, tmp_path / "out", "w4a8", importance=importance, **SMALL)
    weighted = {error.name: error.weighted for error in errors if error.weighted is not None}
    assert weighted.keys() == {name}
    before, after = read_folder(converted["w4a8"]), read_folder(tmp_path / "out")
    changed = {key for key in before if before[key] != after[key]}
    assert changed <= {name, scale_name(name), name.replace("weight", "bias")}
    assert changed


def test_what_fails_at_once_leaves_nothing(tmp_path: Path, tiny_folder):
    def spoil(tensors: Raw) -> None:
        name = "layers.1.attn.wq_b.weight"
        dtype, shape, data = tensors[name]
        tensors[name] = (dtype, shape, b"\x7f" + data[1:])  # e4m3's NaN

    source = rewritten(tiny_folder, tmp_path / "spoilt", spoil)
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.attn\.wq_b\.weight: has values that are no finite"
    ):
        export_recipe(source, tmp_path / "out", "w8a8", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["spoilt"]


def test_broken_scales_are_refused(converted, tmp_path: Path):
    export_checkpoint(converted["w4a8"], tmp_path / "one", progress=False)
    name = "layers.0.ffn.experts.0.w1.scale"

    def high_half(tensors: Raw) -> None:
        dtype, shape, data = tensors[name]
        tensors[name] = (dtype, shape, data[:7] + b"\1" + data[8:])

    folder = rewritten(tmp_path / "one", tmp_path / "broken", high_half)
    with pytest.raises(CheckpointError, match=r"w1\.scale: has scales that are not numbers above 0"):
        dict(read_checkpoint(folder, ModelConfig.from_file(folder)))
    assert check_layout(folder, ModelConfig.from_file(folder))[f"{name[:-5]}weight"].format == "int4"
