"""A checkpoint folder checked against its config.json, from the shards' headers alone.

Whatever is wrong is found here, before the first tensor is read: each error is a CheckpointError that names
file and tensor, what was expected and what was found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fourfold.config import ModelConfig
from fourfold.config_values import parse_json
from fourfold.errors import CheckpointError
from fourfold.kernels.formats import FP4_GROUP
from fourfold.weights.formats import Format, scale_shape, stored_shape
from fourfold.weights.modelslim import INDEX_PATTERN, check_described, read_description
from fourfold.weights.names import (
    COPIES,
    Kind,
    TensorSpec,
    beside,
    canonical,
    checkpoint_spec,
    parameter_of,
    scale_name,
)
from fourfold.weights.shards import Stored, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_FORMATS: dict[str, tuple[Format, ...]] = {
    "F8_E4M3": ("fp8",), "I8": ("fp4", "int8", "int4"), "U8": ("fp4", "int4"), "F4": ("fp4",),
    "BF16": ("bf16",), "F32": ("f32",), "I64": ("int",), "I32": ("int",),
}  # fmt: skip
"""Header dtype -> formats; which of several, the shape says."""
_ALLOWED: dict[Kind, tuple[Format, ...]] = {
    "expert": ("fp4", "fp8", "int8", "int4", "bf16", "f32"),
    "linear": ("fp8", "int8", "bf16", "f32"),
    "bf16": ("bf16", "f32"),
    "f32": ("f32",),
    "int": ("int",),
}
_DTYPES: dict[Format, str] = {
    "fp8": "F8_E4M3", "fp4": "I8 (or F4, U8)", "int8": "I8", "int4": "I8 (or U8)", "bf16": "BF16",
    "f32": "F32", "int": "I64 (or I32)",
}  # fmt: skip
_SCALE_DTYPES: dict[Format, tuple[str, ...]] = {
    "fp8": ("F8_E8M0", "U8", "F32"), "fp4": ("F8_E8M0", "U8", "F32"),
    "int8": ("F32",), "int4": ("U64", "F32"),
}  # fmt: skip
INTEGERS: tuple[Format, ...] = ("int8", "int4")
"""Formats of one scale per output channel."""
_SHOWN = 5


@dataclass(frozen=True)
class Entry:
    """A weight of the model with its storage: `scale` is None unless format is "fp8", "fp4", "int8", "int4".

    offset: of an int8 or int4 weight whose converter stored one; it must be 0.  copy: a second one of the
    weight; it must be equal.  load.py checks both.
    """

    name: str
    spec: TensorSpec
    format: Format
    weight: Stored
    scale: Stored | None
    offset: Stored | None = None
    copy: Stored | None = None


def check_layout(folder: Path, config: ModelConfig) -> dict[str, Entry]:
    """Every weight of the model by official name, in the order of the layers.  Raises CheckpointError."""
    described = read_description(folder)
    if described is None:
        return check_tensors(folder, find_tensors(folder), config)
    # Its converters leave the config.json of the checkpoint that they converted.
    config = dataclasses.replace(config, expert_dtype=None)
    entries = check_tensors(folder, find_tensors(folder), config)
    check_described(folder, described, ((e.name, e.format, e.weight) for e in entries.values()))
    return entries


def check_tensors(folder: Path, stored: dict[str, Stored], config: ModelConfig) -> dict[str, Entry]:
    """The same of tensors by canonical name that are in `folder`, or shall be written there."""
    spec = checkpoint_spec(config)
    _check_missing(folder, config, [name for name in spec if name not in stored])
    entries = {name: _check_weight(stored, name, spec[name], config) for name in spec}
    used = {name for entry in entries.values() for name in _names(entry)}
    if unexpected := [str(tensor) for name, tensor in stored.items() if name not in used]:
        raise CheckpointError(f"{folder}: tensors that this model does not have: {_some(unexpected)}")
    _check_stacks(entries.values())
    return entries


def _names(entry: Entry) -> Iterator[str]:
    """Canonical names of everything that may stand in the files for a weight."""
    yield entry.name
    if entry.scale is not None:
        yield scale_name(entry.name)
    if entry.format in INTEGERS:
        yield beside(entry.name, "weight_offset")
    if entry.format == "int4":
        yield beside(entry.name, "bias")  # the assist, which follows from weight and scale
    if entry.copy is not None:
        yield COPIES[entry.name]


def find_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder's shards by canonical name; index and shards agree, no name twice."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give the folder that holds config.json")
    index_file = find_index(folder)
    if index_file is None and not (folder / SINGLE).exists():
        others = sorted(file.name for file in folder.glob("*.safetensors"))
        found = f"found only {_some(others)}" if others else "found no safetensors file"
        raise CheckpointError(f"{folder}: neither {INDEX} nor {SINGLE} ({found})")
    index = {} if index_file is None else _read_index(index_file)
    stored: dict[str, Stored] = {}
    for file in [SINGLE] if index_file is None else sorted(set(index.values())):
        for tensor in read_header(folder / file):
            if index_file is not None and index.get(tensor.name) != file:
                said = index.get(tensor.name, "no file")
                raise CheckpointError(f"{tensor}: {index_file.name} says that this tensor is in {said}")
            name = canonical(tensor.name)
            if name in stored:
                raise CheckpointError(f"{tensor}: the same tensor as {stored[name]}; remove one of them")
            stored[name] = tensor
    present = {tensor.name for tensor in stored.values()}
    if absent := [f"{name} ({file})" for name, file in index.items() if name not in present]:
        raise CheckpointError(f"{index_file}: names tensors that their files lack: {_some(absent)}")
    return stored


def find_index(folder: Path) -> Path | None:
    """The index of a folder's shards, by the official name or one of ModelSlim's.

    CheckpointError: there are several.
    """
    found = [file for pattern in (INDEX, INDEX_PATTERN) for file in sorted(folder.glob(pattern))]
    if len(found) > 1:
        raise CheckpointError(f"{folder}: has several indices, {_some([f.name for f in found])}; keep one")
    return found[0] if found else None


def _read_index(file: Path) -> dict[str, str]:
    folder = file.parent
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
    fmt = _format(weight, spec, config)
    if fmt == "fp4" and spec.shape[-1] % FP4_GROUP:
        raise CheckpointError(
            f"{weight}: FP4 needs rows of a multiple of {FP4_GROUP}, found {spec.shape[-1]}"
        )
    scale = _check_scale(stored, name, weight, spec.shape, fmt)
    offset = stored.get(beside(name, "weight_offset")) if fmt in INTEGERS else None
    if offset is not None:
        _check_beside(offset, ("F32",), (spec.shape[0], 1))
    if fmt == "int4" and (assist := stored.get(beside(name, "bias"))) is not None:
        # Some converters add it up in slices of I.
        _check_beside(assist, ("F32",), (spec.shape[0], *assist.shape[1:2]))
    copy = stored.get(COPIES.get(name, ""))
    if copy is not None:
        _check_beside(copy, (weight.dtype,), weight.shape)
    return Entry(name, spec, fmt, weight, scale, offset, copy)


def _format(weight: Stored, spec: TensorSpec, config: ModelConfig) -> Format:
    """The format of a weight by its header's dtype and shape."""
    allowed = _ALLOWED[spec.kind]
    if spec.kind == "expert" and config.expert_dtype is not None:
        allowed = tuple(fmt for fmt in allowed if fmt == config.expert_dtype)
    candidates = [fmt for fmt in _FORMATS.get(weight.dtype, ()) if fmt in allowed]
    if not candidates:
        wanted = " or ".join(dict.fromkeys(_DTYPES[fmt] for fmt in allowed))
        raise CheckpointError(f"{weight}: dtype is {weight.dtype}; expected: {wanted}")
    shapes = [
        spec.shape if weight.dtype == "F4" else stored_shape(spec.shape, candidate)
        for candidate in candidates
    ]
    if weight.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise CheckpointError(f"{weight}: shape is {list(weight.shape)}; expected: {wanted}")
    return candidates[shapes.index(weight.shape)]


def _check_scale(
    stored: dict[str, Stored], name: str, weight: Stored, logical: tuple[int, ...], fmt: Format
) -> Stored | None:
    shape = scale_shape(logical, fmt)
    if shape is None:
        return None
    scale = stored.get(scale_name(name))
    if scale is None:
        raise CheckpointError(f"{weight}: its scale {scale_name(name)} is missing; expected: {list(shape)}")
    _check_beside(scale, _SCALE_DTYPES[fmt], shape)
    return scale


def _check_beside(tensor: Stored, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    if tensor.dtype not in dtypes:
        raise CheckpointError(f"{tensor}: dtype is {tensor.dtype}; expected: {' or '.join(dtypes)}")
    if tensor.shape != shape:
        raise CheckpointError(f"{tensor}: shape is {list(tensor.shape)}; expected: {list(shape)}")


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
