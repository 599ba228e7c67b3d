"""Export: a checkpoint in the official layout from another checkpoint, or from a model in training.

Tensors that are not converted keep every bit.  Conversions: experts to fp4, fp8 or bf16, linears to fp8 or
bf16, by the published rules, FP4 to FP8 only without loss; or the whole checkpoint by one of the Ascend
recipes (recipes.py), whose int8 and int4 tensors are stored as cann-recipes-infer stores them: `.weight`,
`.scale`, and for int4 `.bias`, the assist.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError
from fourfold.kernels.formats import FP4_GROUP, channel_scale, decode, integer_codes, row_slabs
from fourfold.weights.formats import (
    Format,
    encode_fp4,
    encode_fp8,
    encode_fp8_exactly,
    int4_assist,
    scale_bits,
    scale_shape,
    stored_shape,
)
from fourfold.weights.hub import resolve
from fourfold.weights.layout import INTEGERS, Entry, check_layout
from fourfold.weights.load import check_redundant, read_tensor
from fourfold.weights.names import beside, checkpoint_spec, parameter_of, scale_name
from fourfold.weights.quantise import TensorError, quantise, relative_error
from fourfold.weights.recipes import RECIPES, recipe_format
from fourfold.weights.shards import Pending, Reader, Stored
from fourfold.weights.writer import SHARD_SIZE, side_files, write_folder

EXPERT_FORMATS: tuple[Format, ...] = ("fp4", "fp8", "bf16")
LINEAR_FORMATS: tuple[Format, ...] = ("fp8", "bf16")

_CONVERSION = 1
"""Goes up with every change of what a recipe writes, so that no job goes on with another's shards."""
_HEADER = {"fp4": "I8", "fp8": "F8_E4M3", "int8": "I8", "int4": "I8", "bf16": "BF16", "f32": "F32"}
_SCALE_HEADER = {"fp4": "F8_E8M0", "fp8": "F8_E8M0", "int8": "F32", "int4": "U64"}


def export_checkpoint(
    src: Path | str,
    dst: Path | str,
    *,
    experts: str | None = None,
    linears: str | None = None,
    shard_size: int = SHARD_SIZE,
    progress: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write the checkpoint `src` (folder or repository id) as the folder `dst`, tensor by tensor.

    experts: None or "keep", "fp4", "fp8", "bf16" for the routed experts; linears: None or "keep", "fp8",
    "bf16" for the other quantised matrices.  shard_size in bytes.  Tokenizer files come along.
    Raises CheckpointError; also for an FP4 tensor that FP8 cannot hold without loss, named with its block.
    """
    folder = resolve(src)
    targets = {
        "expert": _target("experts", experts, EXPERT_FORMATS),
        "linear": _target("linears", linears, LINEAR_FORMATS),
    }
    config = ModelConfig.from_file(folder)
    entries = check_layout(folder, config)
    check_redundant(entries.values())
    with Reader() as reader:
        pending: list[Pending] = []
        for entry in entries.values():
            target = targets.get(entry.spec.kind) or entry.format
            pending += kept(reader, entry) if target == entry.format else _converted(reader, entry, target)
        write_folder(
            Path(dst),
            config,
            pending,
            side_files(folder),
            shard_size=shard_size,
            progress=progress,
            overwrite=overwrite,
        )
    return Path(dst)


def export_recipe(
    src: Path | str,
    dst: Path | str,
    recipe: str,
    *,
    importance: Mapping[str, Tensor] | None = None,
    shard_size: int = SHARD_SIZE,
    progress: bool = True,
    overwrite: bool = False,
) -> list[TensorError]:
    """Write the checkpoint `src` as the folder `dst`, converted by the recipe "w8a8", "w4a8" or "bf16".

    importance: mean square of each input [I], by weight, for the clip search; without it all count alike.
    shard_size in bytes.  Returns what the conversion costs, tensor by tensor.  When it is interrupted, the
    same call goes on after the last whole shard.  Raises CheckpointError.
    """
    if recipe not in RECIPES:
        raise CheckpointError(f"recipe is {recipe!r}; allowed: {', '.join(RECIPES)}")
    folder = resolve(src)
    config = ModelConfig.from_file(folder)
    entries = check_layout(folder, config)
    check_redundant(entries.values())
    known = importance or {}
    with Reader() as reader:
        pending: list[Pending] = []
        for name, entry in entries.items():
            target = recipe_format(recipe, name, entry.spec) or entry.format
            if target == entry.format:
                pending += kept(reader, entry)
            elif entry.format in INTEGERS:
                raise CheckpointError(
                    f"{entry.weight}: is {entry.format} already; convert the original instead"
                )
            else:
                pending += _converted(reader, entry, target, known.get(name))
        notes = write_folder(
            Path(dst),
            config,
            pending,
            side_files(folder),
            shard_size=shard_size,
            progress=progress,
            overwrite=overwrite,
            job=_job(recipe, entries.values(), known, shard_size),
        )
    return [TensorError(**note) for note in notes]


def _job(
    recipe: str, entries: Iterable[Entry], importance: Mapping[str, Tensor], shard_size: int
) -> dict[str, Any]:
    """All that decides what a conversion writes."""
    files = {entry.weight.file for entry in entries}
    weights = hashlib.sha256()
    for name in sorted(importance):
        weights.update(name.encode() + importance[name].contiguous().numpy().tobytes())
    return {
        "recipe": recipe,
        "conversion": _CONVERSION,
        "files": sorted((str(f.resolve()), (s := f.stat()).st_size, s.st_mtime_ns) for f in files),
        "importance": weights.hexdigest(),
        "shard_size": shard_size,
    }


def official_tensors(
    config: ModelConfig, parameters: Mapping[str, Tensor], *, experts: Format = "fp4", linears: Format = "fp8"
) -> Iterator[tuple[str, Tensor]]:
    """A model in training -> (official name, tensor as stored) for `write_checkpoint`.

    parameters: float32, by parameter name, experts stacked [E, O, I].  Raises CheckpointError if one is
    missing or has the wrong shape.
    """
    for name, spec in checkpoint_spec(config).items():
        parameter, expert = parameter_of(name)
        if parameter not in parameters:
            raise CheckpointError(f"the model to be written has no {parameter}")
        tensor = parameters[parameter].detach()
        tensor = tensor if expert is None else tensor[expert]
        if tuple(tensor.shape) != spec.shape:
            raise CheckpointError(f"{name}: shape is {list(tensor.shape)}; expected: {list(spec.shape)}")
        if spec.kind == "int":
            yield name, tensor.to(torch.int64)
        elif spec.kind in ("f32", "bf16"):
            yield name, tensor.to(torch.float32 if spec.kind == "f32" else torch.bfloat16)
        else:
            weight, scale = encode(tensor, experts if spec.kind == "expert" else linears, name)
            yield name, weight
            if scale is not None:
                yield scale_name(name), scale


def encode(weight: Tensor, fmt: Format, name: str, *, exactly: bool = False) -> tuple[Tensor, Tensor | None]:
    """weight [O, I] float -> (stored weight, scale or None) in `fmt`; `name` is for the error.

    exactly: refuse FP8 that would change a value.
    """
    _check_finite(weight, name)
    if fmt == "fp8":
        return encode_fp8_exactly(weight, name) if exactly else encode_fp8(weight)
    if fmt == "fp4":
        if weight.shape[-1] % FP4_GROUP:
            width = weight.shape[-1]
            raise CheckpointError(f"{name}: FP4 needs rows of a multiple of {FP4_GROUP}, found {width}")
        return encode_fp4(weight)
    return weight.to(torch.bfloat16 if fmt == "bf16" else torch.float32), None


def _check_finite(weight: Tensor, name: str) -> None:
    if not bool(weight.isfinite().all()):
        raise CheckpointError(f"{name}: has values that are no finite numbers, which cannot be converted")


def _target(option: str, value: str | None, allowed: tuple[Format, ...]) -> Format | None:
    if value in (None, "keep"):
        return None
    for fmt in allowed:
        if fmt == value:
            return fmt
    raise CheckpointError(f"{option} is {value!r}; allowed: keep, {', '.join(allowed)}")


def kept(reader: Reader, entry: Entry) -> Iterator[Pending]:
    """The weight and its scale, every byte as it is stored; beside int4 codes what `_converted` writes."""

    def raw(stored: Stored) -> Tensor:
        return reader.copy(stored, torch.empty(stored.nbytes, dtype=torch.uint8))

    weight, scale = entry.weight, entry.scale
    yield Pending(entry.name, weight.dtype, weight.shape, lambda: raw(weight))
    if scale is None:
        return
    if entry.format != "int4":
        yield Pending(scale_name(entry.name), scale.dtype, scale.shape, lambda: raw(scale))
        return

    def channels() -> Tensor:
        return channel_scale(read_tensor(reader, scale, entry))

    def assist() -> Tensor:
        return int4_assist(integer_codes(read_tensor(reader, weight, entry)), channels())

    yield Pending(scale_name(entry.name), _SCALE_HEADER["int4"], scale.shape, lambda: scale_bits(channels()))
    yield Pending(beside(entry.name, "bias"), "F32", scale.shape[:1], assist)


def _converted(
    reader: Reader, entry: Entry, target: Format, importance: Tensor | None = None
) -> Iterator[Pending]:
    """The tensors of a weight in another format."""

    def convert() -> tuple[dict[str, Tensor], dict[str, Any]]:
        parts, error = _convert(reader, entry, target, importance)
        return parts, error.to_json()

    return written_as(entry, target, convert)


def written_as(
    entry: Entry, target: Format, convert: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]
) -> Iterator[Pending]:
    """The tensors of a weight that is stored in format `target`; computed together when the first is asked
    for.

    convert: gives them by the last word of their name, and what there is to say about them.
    """
    name, shape = entry.name, entry.spec.shape
    parts: dict[str, Tensor] = {}
    notes: list[dict[str, Any]] = []

    def load(leaf: str) -> Tensor:
        if not parts:
            found, note = convert()
            parts.update(found)
            notes.append(note)
        return parts.pop(leaf)

    def pending(leaf: str, dtype: str, shape: tuple[int, ...]) -> Pending:
        note = (lambda: notes[0]) if leaf == "weight" else None
        return Pending(beside(name, leaf), dtype, shape, functools.partial(load, leaf), note)

    yield pending("weight", _HEADER[target], stored_shape(shape, target))
    scales = scale_shape(shape, target)
    if scales is not None:
        yield pending("scale", _SCALE_HEADER[target], scales)
    if target == "int4":
        yield pending("bias", "F32", shape[:1])


def _decoded(weight: Tensor, scale: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """A stored matrix as float32; besides it a slab of rows is held."""
    values = torch.empty(shape)
    row = 0
    for slab in row_slabs(weight, scale):
        part = decode(*slab)
        values[row : row + len(part)] = part
        row += len(part)
    return values


def _convert(
    reader: Reader, entry: Entry, target: Format, importance: Tensor | None
) -> tuple[dict[str, Tensor], TensorError]:
    """The parts of a converted weight by the last word of their name, and what the conversion costs."""
    exactly = entry.format == "fp4" and target == "fp8"
    return stored_as(read_values(reader, entry), entry, target, importance, exactly=exactly)


def read_values(reader: Reader, entry: Entry) -> Tensor:
    """A weight [O, I] as float32."""
    weight = read_tensor(reader, entry.weight, entry)
    scale = None if entry.scale is None else read_tensor(reader, entry.scale, entry)
    return _decoded(weight, scale, entry.spec.shape)


def stored_as(
    values: Tensor, entry: Entry, target: Format, importance: Tensor | None = None, *, exactly: bool = False
) -> tuple[dict[str, Tensor], TensorError]:
    """values [O, I] f32 in the place of a weight: the stored parts by the last word of their name, and the
    error."""
    name = str(entry.weight)
    if target in INTEGERS:
        _check_finite(values, name)
        done = quantise(values, target, entry.name, importance)
        parts = {"weight": done.weight, "scale": done.scale, "bias": done.assist}
        return {leaf: part for leaf, part in parts.items() if part is not None}, done.error
    stored, new_scale = encode(values, target, name, exactly=exactly)
    parts = {"weight": stored, "scale": new_scale}
    found = {leaf: part for leaf, part in parts.items() if part is not None}
    return found, TensorError(entry.name, target, relative_error(values, decode(stored, new_scale)))
