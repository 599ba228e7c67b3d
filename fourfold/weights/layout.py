"""A checkpoint folder checked against its config.json, from the shards' headers alone.

Whatever is wrong is found here, before the first tensor is read: each error is a CheckpointError that names
file and tensor, what was expected and what was found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fourfold.config import ModelConfig
from fourfold.config_values import parse_json
from fourfold.errors import CheckpointError
from fourfold.kernels.formats import FP4_GROUP
from fourfold.weights.formats import Format, scale_shape
from fourfold.weights.names import Kind, TensorSpec, canonical, checkpoint_spec, parameter_of, scale_name
from fourfold.weights.shards import Stored, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_FORMATS: dict[str, Format] = {
    "F8_E4M3": "fp8", "I8": "fp4", "U8": "fp4", "F4": "fp4",
    "BF16": "bf16", "F32": "f32", "I64": "int", "I32": "int",
}  # fmt: skip
_ALLOWED: dict[Kind, tuple[Format, ...]] = {
    "expert": ("fp4", "fp8", "bf16", "f32"),
    "linear": ("fp8", "bf16", "f32"),
    "bf16": ("bf16", "f32"),
    "f32": ("f32",),
    "int": ("int",),
}
_DTYPES: dict[Format, str] = {
    "fp8": "F8_E4M3", "fp4": "I8 (or F4, U8)", "bf16": "BF16", "f32": "F32", "int": "I64 (or I32)",
}  # fmt: skip
_SCALE_DTYPES = ("F8_E8M0", "U8", "F32")
_SHOWN = 5


@dataclass(frozen=True)
class Entry:
    """A weight of the model with its storage: `scale` is None unless format is "fp8" or "fp4"."""

    name: str
    spec: TensorSpec
    format: Format
    weight: Stored
    scale: Stored | None


def check_layout(folder: Path, config: ModelConfig) -> dict[str, Entry]:
    """Every weight of the model by official name, in the order of the layers.  Raises CheckpointError."""
    return check_tensors(folder, find_tensors(folder), config)


def check_tensors(folder: Path, stored: dict[str, Stored], config: ModelConfig) -> dict[str, Entry]:
    """The same of tensors by canonical name that are in `folder`, or shall be written there."""
    spec = checkpoint_spec(config)
    _check_missing(folder, config, [name for name in spec if name not in stored])
    entries = {name: _check_weight(stored, name, spec[name], config) for name in spec}
    used = spec.keys() | {scale_name(entry.name) for entry in entries.values() if entry.scale is not None}
    if unexpected := [str(tensor) for name, tensor in stored.items() if name not in used]:
        raise CheckpointError(f"{folder}: tensors that this model does not have: {_some(unexpected)}")
    _check_stacks(entries.values())
    return entries


def find_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder's shards by canonical name; index and shards agree, no name twice."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give the folder that holds config.json")
    index = _read_index(folder) if (folder / INDEX).exists() else None
    if index is None and not (folder / SINGLE).exists():
        others = sorted(file.name for file in folder.glob("*.safetensors"))
        found = f"found only {_some(others)}" if others else "found no safetensors file"
        raise CheckpointError(f"{folder}: neither {INDEX} nor {SINGLE} ({found})")
    files = sorted(set(index.values())) if index is not None else [SINGLE]
    stored: dict[str, Stored] = {}
    for file in files:
        for tensor in read_header(folder / file):
            if index is not None and index.get(tensor.name) != file:
                said = index.get(tensor.name, "no file")
                raise CheckpointError(f"{tensor}: {INDEX} says that this tensor is in {said}")
            name = canonical(tensor.name)
            if name in stored:
                raise CheckpointError(f"{tensor}: the same tensor as {stored[name]}; remove one of them")
            stored[name] = tensor
    if index is not None:
        present = {tensor.name for tensor in stored.values()}
        if absent := [f"{name} ({file})" for name, file in index.items() if name not in present]:
            raise CheckpointError(f"{folder / INDEX}: names tensors that their files lack: {_some(absent)}")
    return stored


def _read_index(folder: Path) -> dict[str, str]:
    file = folder / INDEX
    try:
        data = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{file}: needs an object weight_map that maps tensor names to file names")
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise CheckpointError(f"{file}: names the file {name!r}; allowed: files in the same folder")
        if not (folder / name).is_file():
            lost = [tensor for tensor, where in weight_map.items() if where == name]
            raise CheckpointError(
                f"{file}: names {name}, which is missing; it should hold {_some(lost)}. Download it again"
            )
    return weight_map


def _check_missing(folder: Path, config: ModelConfig, missing: list[str]) -> None:
    if not missing:
        return
    hint = ""
    if all(name.startswith("mtp.") for name in missing):
        hint = (
            f". config.json has num_nextn_predict_layers {config.num_nextn_predict_layers}: "
            "set it to 0 if the checkpoint comes without its MTP block"
        )
    raise CheckpointError(f"{folder}: missing tensors: {_some(missing)}{hint}")


def _check_weight(stored: dict[str, Stored], name: str, spec: TensorSpec, config: ModelConfig) -> Entry:
    weight = stored[name]
    allowed = _ALLOWED[spec.kind]
    if spec.kind == "expert" and config.expert_dtype is not None:
        allowed = tuple(fmt for fmt in allowed if fmt == config.expert_dtype)
    fmt = _FORMATS.get(weight.dtype)
    if fmt is None or fmt not in allowed:
        wanted = " or ".join(_DTYPES[fmt] for fmt in allowed)
        raise CheckpointError(f"{weight}: dtype is {weight.dtype}; expected: {wanted}")
    shape = spec.shape
    if fmt == "fp4":
        if shape[-1] % FP4_GROUP:
            raise CheckpointError(f"{weight}: FP4 needs rows of a multiple of {FP4_GROUP}, found {shape[-1]}")
        shape = shape if weight.dtype == "F4" else (shape[0], shape[1] // 2)
    if weight.shape != shape:
        raise CheckpointError(f"{weight}: shape is {list(weight.shape)}; expected: {list(shape)}")
    return Entry(name, spec, fmt, weight, _check_scale(stored, name, weight, scale_shape(spec.shape, fmt)))


def _check_scale(
    stored: dict[str, Stored], name: str, weight: Stored, shape: tuple[int, ...] | None
) -> Stored | None:
    if shape is None:
        return None
    scale = stored.get(scale_name(name))
    if scale is None:
        raise CheckpointError(f"{weight}: its scale {scale_name(name)} is missing; expected: {list(shape)}")
    if scale.dtype not in _SCALE_DTYPES:
        wanted = " or ".join(_SCALE_DTYPES)
        raise CheckpointError(f"{scale}: dtype is {scale.dtype}; expected: {wanted}")
    if scale.shape != shape:
        raise CheckpointError(f"{scale}: shape is {list(scale.shape)}; expected: {list(shape)}")
    return scale


def _check_stacks(entries: Iterable[Entry]) -> None:
    """Experts that are stacked into one parameter must be stored alike."""
    first: dict[str, Entry] = {}
    for entry in entries:
        if entry.spec.kind != "expert":
            continue
        other = first.setdefault(parameter_of(entry.name)[0], entry)
        if other.format != entry.format:
            raise CheckpointError(
                f"{entry.weight}: stored as {entry.format}, but {other.weight} as {other.format}; "
                "expected: one format for the experts of a layer"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
