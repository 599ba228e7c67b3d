"""Export: a checkpoint in the official layout from another checkpoint, or from a model in training.

Tensors that are not converted keep every bit.  Conversions: experts to fp4, fp8 or bf16, linears to fp8 or
bf16, by the published rules; FP4 to FP8 only without loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError
from fourfold.kernels.formats import FP4_GROUP, decode
from fourfold.weights.formats import Format, encode_fp4, encode_fp8, encode_fp8_exactly, scale_shape
from fourfold.weights.hub import resolve
from fourfold.weights.layout import Entry, check_layout
from fourfold.weights.load import read_tensor
from fourfold.weights.names import checkpoint_spec, parameter_of, scale_name
from fourfold.weights.shards import Pending, Reader, Stored
from fourfold.weights.writer import SHARD_SIZE, side_files, write_folder

EXPERT_FORMATS: tuple[Format, ...] = ("fp4", "fp8", "bf16")
LINEAR_FORMATS: tuple[Format, ...] = ("fp8", "bf16")

_HEADER = {"fp4": "I8", "fp8": "F8_E4M3", "bf16": "BF16", "f32": "F32"}


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
    with Reader() as reader:
        pending: list[Pending] = []
        for entry in check_layout(folder, config).values():
            target = targets.get(entry.spec.kind) or entry.format
            if target == entry.format:
                pending += _kept(reader, entry)
            else:
                pending += _Conversion(reader, entry, target).pending()
        return write_folder(
            Path(dst),
            config,
            pending,
            side_files(folder),
            shard_size=shard_size,
            progress=progress,
            overwrite=overwrite,
        )


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
    if not bool(weight.isfinite().all()):
        raise CheckpointError(f"{name}: has values that are no finite numbers, which cannot be converted")
    if fmt == "fp8":
        return encode_fp8_exactly(weight, name) if exactly else encode_fp8(weight)
    if fmt == "fp4":
        if weight.shape[-1] % FP4_GROUP:
            width = weight.shape[-1]
            raise CheckpointError(f"{name}: FP4 needs rows of a multiple of {FP4_GROUP}, found {width}")
        return encode_fp4(weight)
    return weight.to(torch.bfloat16 if fmt == "bf16" else torch.float32), None


def _target(option: str, value: str | None, allowed: tuple[Format, ...]) -> Format | None:
    if value in (None, "keep"):
        return None
    for fmt in allowed:
        if fmt == value:
            return fmt
    raise CheckpointError(f"{option} is {value!r}; allowed: keep, {', '.join(allowed)}")


def _kept(reader: Reader, entry: Entry) -> Iterator[Pending]:
    """The weight and its scale, byte by byte, whatever dtype they are stored as."""

    def raw(stored: Stored) -> Tensor:
        return reader.copy(stored, torch.empty(stored.nbytes, dtype=torch.uint8))

    weight, scale = entry.weight, entry.scale
    yield Pending(entry.name, weight.dtype, weight.shape, lambda: raw(weight))
    if scale is not None:
        yield Pending(scale_name(entry.name), scale.dtype, scale.shape, lambda: raw(scale))


class _Conversion:
    """A weight in another format; computed when first asked for and forgotten when both parts are taken."""

    def __init__(self, reader: Reader, entry: Entry, target: Format) -> None:
        self._reader, self._entry, self._target = reader, entry, target
        self._done: tuple[Tensor, Tensor | None] | None = None

    def pending(self) -> Iterator[Pending]:
        name, shape = self._entry.name, self._entry.spec.shape
        scales = scale_shape(shape, self._target)
        rows = shape if self._target != "fp4" else (*shape[:-1], shape[-1] // 2)
        yield Pending(name, _HEADER[self._target], rows, self._weight)
        if scales is not None:
            yield Pending(scale_name(name), "F8_E8M0", scales, self._scale)

    def _weight(self) -> Tensor:
        self._done = self._convert()
        weight, scale = self._done
        if scale is None:
            self._done = None
        return weight

    def _scale(self) -> Tensor:
        # Usually just computed for the weight; not if a shard ends between the two.
        _, scale = self._done or self._convert()
        self._done = None
        assert scale is not None
        return scale

    def _convert(self) -> tuple[Tensor, Tensor | None]:
        entry = self._entry
        weight = read_tensor(self._reader, entry.weight, entry)
        scale = None if entry.scale is None else read_tensor(self._reader, entry.scale, entry)
        exactly = entry.format == "fp4" and self._target == "fp8"
        return encode(decode(weight, scale), self._target, str(entry.weight), exactly=exactly)
