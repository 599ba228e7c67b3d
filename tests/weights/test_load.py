from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError
from fourfold.weights.export import export_checkpoint
from fourfold.weights.load import read_checkpoint
from fourfold.weights.shards import Reader, read_header
from tests.weights.raw import GOLDEN, Raw, read_raw, rewritten, same_bits, tensor_name, write_raw

W = "layers.1.attn.wkv.weight"
S = "layers.1.attn.wkv.scale"
EXPERT = "layers.2.ffn.experts.3.w1.weight"


def load(folder: Path) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(folder, ModelConfig.from_file(folder)))


def refused(folder: Path, *parts: str) -> None:
    """Loading fails before the first tensor, with a message that has all `parts`."""
    with pytest.raises(CheckpointError) as caught:
        next(read_checkpoint(folder, ModelConfig.from_file(folder)))
    for part in parts:
        assert part in str(caught.value)


def test_every_tensor_arrives_as_stored_and_experts_are_stacked():
    expected = load_file(GOLDEN / "model.safetensors")
    seen = 0
    for name, tensor in load(GOLDEN).items():
        experts = range(8) if ".ffn.experts." in name else [None]
        for expert in experts:
            stored = expected[tensor_name(name, expert)]
            assert same_bits(tensor if expert is None else tensor[expert], stored)
            seen += 1
    assert seen == len(expected)


def test_shards_with_index_are_the_same(tmp_path: Path):
    folder = export_checkpoint(GOLDEN, tmp_path / "shards", shard_size=1_000_000, progress=False)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) == 9
    whole = load(GOLDEN)
    for name, tensor in load(folder).items():
        assert same_bits(tensor, whole.pop(name))
    assert not whole


def test_older_spellings_load_to_the_same_tensors(tmp_path: Path):
    def older(tensors: Raw) -> None:
        for name in list(tensors):
            dtype, shape, data = tensors.pop(name)
            if dtype == "F8_E8M0" and ".experts." not in name:
                values = torch.frombuffer(bytearray(data), dtype=torch.float8_e8m0fnu).float()
                dtype, data = "F32", values.numpy().tobytes()
            elif dtype == "F8_E8M0":
                dtype = "U8"
            elif dtype == "I8":
                dtype, shape = ("U8", shape) if ".w1." in name else ("F4", [shape[0], shape[1] * 2])
            elif dtype == "I64":
                dtype = "I32"
                data = torch.frombuffer(bytearray(data), dtype=torch.int64).int().numpy().tobytes()
            if name.endswith(".scale"):
                name = f"model.{name.removesuffix('.scale')}.weight_scale_inv"
            tensors[name] = (dtype, shape, data)

    whole = load(GOLDEN)
    for name, tensor in load(rewritten(GOLDEN, tmp_path / "older", older)).items():
        assert same_bits(tensor, whole.pop(name)), name
    assert not whole


def test_float32_scales_that_are_no_powers_of_two_are_kept(tmp_path: Path):
    def change(tensors: Raw) -> None:
        scale = W.replace(".weight", ".scale")
        tensors[scale] = ("F32", [1, 2], torch.tensor([0.5, 0.3]).numpy().tobytes())

    tensors = load(rewritten(GOLDEN, tmp_path / "f32", change))
    assert tensors["layers.1.attn.wkv.scale"].tolist() == [[0.5, pytest.approx(0.3)]]
    assert tensors["layers.1.attn.wkv.scale"].dtype == torch.float32
    assert tensors["layers.0.attn.wkv.scale"].dtype == torch.float8_e8m0fnu


def replace(name: str, **fields: object):
    def change(tensors: Raw) -> None:
        dtype, shape, data = tensors[name]
        new_dtype, new_shape = fields.get("dtype", dtype), fields.get("shape", shape)
        assert isinstance(new_dtype, str)
        assert isinstance(new_shape, list)
        tensors[name] = (new_dtype, new_shape, data)

    return change


def without_mtp(tensors: Raw) -> None:
    for name in [name for name in tensors if name.startswith("mtp.")]:
        del tensors[name]


def bf16_expert(tensors: Raw) -> None:
    tensors[EXPERT] = ("BF16", [128, 256], bytes(2 * 128 * 256))
    del tensors[EXPERT.replace(".weight", ".scale")]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop(W), ["missing tensors: layers.1.attn.wkv.weight"]),
        (lambda t: t.pop(S), [W, "scale layers.1.attn.wkv.scale is missing", "[1, 2]"]),
        (without_mtp, ["mtp.0", "num_nextn_predict_layers 1"]),
        (lambda t: t.update({"engram.weight": ("BF16", [1], b"\0\0")}), ["does not have: model", "engram"]),
        (lambda t: t.update({f"model.{W}": t[W]}), ["model.layers.1.attn", "the same tensor as"]),
        (replace(W, shape=[256, 128]), [W, "shape is [256, 128]; expected: [128, 256]"]),
        (replace(W, dtype="U8"), [W, "dtype is U8; expected: F8_E4M3 or I8 or BF16 or F32"]),
        (replace(W, dtype="I8"), [S, "dtype is F8_E8M0; expected: F32"]),
        (replace("norm.weight", dtype="F32", shape=[128]), ["shape is [128]; expected: [256]"]),
        (replace("layers.1.hc_attn_base", dtype="BF16", shape=[48]), ["dtype is BF16; expected: F32"]),
        (replace(EXPERT, dtype="F8_E4M3"), [EXPERT, "dtype is F8_E4M3; expected: I8"]),
        (replace(EXPERT, shape=[64, 256]), [EXPERT, "shape is [64, 256]; expected: [128, 128]"]),
        (replace(EXPERT.replace(".weight", ".scale"), shape=[8, 128]), ["w1.scale", "expected: [128, 8]"]),
        (replace(S, dtype="I8"), ["wkv.scale", "dtype is I8; expected: F8_E8M0"]),
        (replace(W, dtype="C64"), [W, "dtype is C64; allowed: "]),
        (replace(W, shape=[128, 255]), [W, "takes 32640 bytes, the header gives it 32768"]),
        (replace(W, shape=[-128, -256]), [W, "broken header entry"]),
    ],
)  # fmt: skip
def test_each_defect_is_named(tmp_path: Path, change, parts):
    refused(rewritten(GOLDEN, tmp_path / "broken", change), *parts)


def test_experts_of_a_layer_must_be_stored_alike(tmp_path: Path):
    folder = rewritten(GOLDEN, tmp_path / "mixed", bf16_expert)
    refused(folder, EXPERT, "dtype is BF16; expected: I8")
    config = json.loads((folder / "config.json").read_text())
    del config["expert_dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, EXPERT, "stored as bf16, but", "experts.0.w1.weight as fp4")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layers.1.attn.wkv.scale", 255, "layers.1.attn.wkv.scale: has scales that are not numbers above 0"),
        ("layers.2.ffn.experts.3.w1.scale", 255, "experts.3.w1.scale: has scales"),
        ("layers.0.ffn.gate.tid2eid", 8, "expert numbers out of range; allowed: 0 to 7"),
    ],
)
def test_values_that_would_poison_every_answer(tmp_path: Path, name, value, message):
    def change(tensors: Raw) -> None:
        dtype, shape, data = tensors[name]
        tensors[name] = (dtype, shape, bytes([value]) + data[1:])

    with pytest.raises(CheckpointError, match=message):
        load(rewritten(GOLDEN, tmp_path / "poison", change))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "golden"
    return export_checkpoint(GOLDEN, folder, shard_size=3_000_000, progress=False)


def edit_index(folder: Path, changes: dict[str, str | None]) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    edited = index["weight_map"] | changes
    index["weight_map"] = {name: shard for name, shard in edited.items() if shard is not None}
    file.write_text(json.dumps(index))


INDEX = "model.safetensors.index.json"
SECOND, THIRD = "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda f: (f / SECOND).unlink(), [SECOND, "missing", "it should hold"]),
        (lambda f: edit_index(f, {"x.weight": SECOND}), ["lack", f"x.weight ({SECOND})"]),
        (lambda f: edit_index(f, {"head.weight": SECOND}), ["head.weight", f"is in {SECOND}"]),
        (lambda f: edit_index(f, {"head.weight": None}), ["head.weight", "says that this tensor is in no"]),
        (lambda f: edit_index(f, {"head.weight": "../x"}), ["'../x'", "in the same folder"]),
        (lambda f: (f / INDEX).unlink(), ["neither", "found only model-00001-of-00003"]),
        (lambda f: (f / INDEX).write_text("{"), ["index.json", "cannot be read"]),
        (lambda f: (f / INDEX).write_text("[]"), ["needs an object weight_map"]),
        (lambda f: (f / INDEX).write_text('{"weight_map": {"x": "a", "x": "b"}}'), ["x occurs more"]),
        (lambda f: write_raw(f / SECOND, read_raw(f / SECOND) | read_raw(f / THIRD)), ["says that this"]),
        (lambda f: (f / SECOND).write_bytes(b""), [SECOND, "truncated"]),
        (lambda f: (f / SECOND).write_bytes((f / SECOND).read_bytes() + b"x"), ["1 bytes follow the last"]),
    ],
)  # fmt: skip
def test_index_and_shards_must_agree(tmp_path: Path, sharded: Path, damage, parts):
    folder = shutil.copytree(sharded, tmp_path / "copy")
    damage(folder)
    refused(folder, *parts)


def test_no_such_folder(tmp_path: Path):
    config = ModelConfig.from_file(GOLDEN)
    with pytest.raises(CheckpointError, match="no such folder"):
        next(read_checkpoint(tmp_path / "nothing", config))
    with pytest.raises(CheckpointError, match="found no safetensors file"):
        next(read_checkpoint(tmp_path, config))


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_noticed_before_the_first_tensor(tmp_path_factory, part):
    data = (GOLDEN / "model.safetensors").read_bytes()
    folder = tmp_path_factory.mktemp("cut", numbered=True)
    (folder / "model.safetensors").write_bytes(data[: int(part * len(data))])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        next(read_checkpoint(folder, ModelConfig.from_file(GOLDEN)))
    shutil.rmtree(folder)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_header_never_does_more_than_raise(tiny_folder, tmp_path_factory, data):
    raw = bytearray((tiny_folder / "model.safetensors").read_bytes())
    length = int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, 8 + length - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged", numbered=True)
    (folder / "model.safetensors").write_bytes(raw)
    try:
        tensors = dict(read_checkpoint(folder, ModelConfig.from_file(tiny_folder)))
    except CheckpointError as error:
        assert str(error)  # noqa: PT017
    else:
        assert len(tensors) > 50
    finally:
        shutil.rmtree(folder)


def test_a_name_twice_in_a_header_is_named_at_once(tmp_path: Path):
    entry = '{"dtype": "I8", "shape": [0], "data_offsets": [0, 0]}'
    names = [f'"{i}": {entry}' for i in range(100_000)]
    text = "{" + ", ".join([*names, names[-1]]) + "}"
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text.encode())
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*99999 occurs more than once"):
        read_header(tmp_path / "model.safetensors")


def test_a_view_outlives_its_reader():
    stored = read_header(GOLDEN / "model.safetensors")[0]
    with Reader() as reader:
        copied = reader.copy(stored, torch.empty(stored.nbytes, dtype=torch.uint8))
        mapped = reader._mapping(stored)
        view = torch.frombuffer(mapped, dtype=torch.uint8, offset=stored.start, count=stored.nbytes)
        del mapped
    assert torch.equal(view, copied)
