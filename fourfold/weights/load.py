"""Checkpoint folder -> the model's tensors as they are stored, experts stacked, one after the other.

Everything that headers can tell is checked before the first tensor is read.  Tensors are copied from the
mapped files straight into their final storage, in file order; besides that storage no more than a chunk
of a file is held.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError
from fourfold.kernels.formats import channel_scale
from fourfold.weights.formats import E8M0_NAN, Format, encode_e8m0, is_e8m0
from fourfold.weights.layout import INTEGERS, Entry, check_layout
from fourfold.weights.memory import WeightMemory
from fourfold.weights.names import parameter_of, scale_name
from fourfold.weights.progress import byte_progress
from fourfold.weights.shards import Reader, Stored

_MEMORY_DTYPES = {
    "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu, "F4": torch.int8, "I8": torch.int8,
    "BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64, "I32": torch.int32,
    "U64": torch.int64,
}  # fmt: skip


_COMPARED = 64 << 20  # bytes of a copy that are compared at once


@dataclass(frozen=True)
class Item:
    """A stored tensor and where it goes: `parameter`, whole or as row `expert` of it.

    dtype and shape are those it has in memory; format is that of the weight that it is or belongs to.
    """

    stored: Stored
    parameter: str
    expert: int | None
    dtype: torch.dtype
    shape: tuple[int, ...]
    format: Format


def read_checkpoint(
    path: Path | str, config: ModelConfig, device: torch.device | str = "cpu", progress: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Yield (parameter name, tensor on `device`) for every parameter and scale, each once.

    Names and dtypes: FP8 weights float8_e4m3fn [O, I], FP4 weights int8 [O, I/2] whatever their spelling on
    disk; their `.scale` float8_e8m0fnu, or float32 where it is stored so and not all powers of two; int8
    weights int8 [O, I], int4 weights uint8 [O/2, I], their `.scale` [O] float32, or int64 with its bits; bf16
    and float32 as stored; tid2eid int64.  Routed experts are stacked, [E, ...].
    Raises CheckpointError, before the first tensor for all that headers can tell.
    """
    yield from read_items(checkpoint_items(Path(path), config), config, device, progress)


def checkpoint_items(folder: Path, config: ModelConfig) -> list[Item]:
    """Every weight and scale of a checkpoint, from its headers, in the order of the layers.

    What a converter stored beside the weights is read and checked: see `check_redundant`.  CheckpointError.
    """
    entries = check_layout(folder, config)
    check_redundant(entries.values())
    return list(_items(entries))


def check_redundant(entries: Iterable[Entry]) -> None:
    """The offsets of converted weights are 0, and second copies equal what they copy.  CheckpointError."""
    with Reader() as reader:
        for entry in entries:
            if entry.offset is not None:
                offset = reader.copy(entry.offset, torch.empty(entry.offset.shape))
                if bool(offset.any()):
                    raise CheckpointError(
                        f"{entry.offset}: has offsets that are not 0; allowed: weights that were converted "
                        "symmetrically"
                    )
            if entry.copy is not None and not _equal(reader, entry.weight, entry.copy):
                raise CheckpointError(f"{entry.copy}: differs from {entry.weight}, of which it is a copy")


def _equal(reader: Reader, a: Stored, b: Stored) -> bool:
    """Whether two stored tensors of one size have the same bytes; a part of them is held at a time."""
    for begin in range(0, a.nbytes, _COMPARED):
        parts = []
        for whole in (a, b):
            start = whole.start + begin
            part = dataclasses.replace(whole, start=start, stop=min(start + _COMPARED, whole.stop))
            parts.append(reader.copy(part, torch.empty(part.nbytes, dtype=torch.uint8)))
        if not torch.equal(*parts):
            return False
    return True


def read_items(
    items: Iterable[Item],
    config: ModelConfig,
    device: torch.device | str = "cpu",
    progress: bool = True,
    rows: int | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """As `read_checkpoint`, of some items: of a stack of experts all rows or none.

    rows: of each stack; None: all experts.  Raises CheckpointError.
    """
    rows = config.n_routed_experts if rows is None else rows
    items = sorted(items, key=lambda item: (item.stored.file, item.stored.start))
    total = sum(item.stored.nbytes for item in items)
    stacks: dict[str, tuple[Tensor, int]] = {}
    memory = WeightMemory()

    def empty(item: Item, *count: int) -> Tensor:
        shape = (*count, *item.shape)
        if torch.device(device).type == "cpu" and not _changes(item):
            return memory.empty(shape, item.dtype)
        return torch.empty(shape, dtype=item.dtype, device=device)

    with Reader() as reader, byte_progress("loading", total, show=progress) as advance:
        for item in items:
            if item.expert is None:
                tensor = reader.copy(item.stored, empty(item), advance)
                _check_values(item, tensor, config)
                yield item.parameter, _in_memory(item, tensor)
                continue
            if item.parameter not in stacks:
                stacks[item.parameter] = (empty(item, rows), 0)
            stack, filled = stacks[item.parameter]
            _check_values(item, reader.copy(item.stored, stack[item.expert], advance), config)
            stacks[item.parameter] = (stack, filled + 1)
            if filled + 1 == rows:
                del stacks[item.parameter]
                yield item.parameter, _in_memory(item, stack)
    assert not stacks


def read_tensor(reader: Reader, stored: Stored, entry: Entry) -> Tensor:
    """One weight or scale of a checked layout, on the CPU, in the dtype it has in memory."""
    item = _item(entry, stored)
    return reader.copy(stored, torch.empty(item.shape, dtype=item.dtype))


def _items(entries: dict[str, Entry]) -> Iterator[Item]:
    for entry in entries.values():
        yield _item(entry, entry.weight)
        if entry.scale is not None:
            yield _item(entry, entry.scale)


def _item(entry: Entry, stored: Stored) -> Item:
    is_scale = stored is entry.scale
    parameter, expert = parameter_of(scale_name(entry.name) if is_scale else entry.name)
    shape = stored.shape
    # U8 is a spelling of several types, told apart by what the tensor is.
    dtype = _MEMORY_DTYPES.get(stored.dtype, torch.float8_e8m0fnu if is_scale else torch.int8)
    if stored.dtype == "F4":  # counted in values on disk, in pairs in memory
        shape = (*shape[:-1], shape[-1] // 2)
    if entry.format in INTEGERS and is_scale:
        shape = shape[:1]  # [O, 1] on disk; in memory its dims tell these formats from FP4
    elif entry.format == "int4":
        dtype = torch.uint8
    return Item(stored, parameter, expert, dtype, shape, entry.format)


def _check_values(item: Item, tensor: Tensor, config: ModelConfig) -> None:
    """What could make every answer nonsense without a trace: broken scales, experts that do not exist."""
    if item.parameter.endswith(".scale"):
        if tensor.dtype == torch.float8_e8m0fnu:
            broken = tensor.view(torch.uint8) == E8M0_NAN
        else:
            values = channel_scale(tensor)
            broken = ~((values > 0) & (values < torch.inf))
            if tensor.dtype == torch.int64:
                broken |= tensor >> 32 != 0
        if bool(broken.any()):
            raise CheckpointError(
                f"{item.stored}: has scales that are not numbers above 0. Download it again"
            )
    if item.parameter.endswith(".tid2eid"):
        most = config.n_routed_experts - 1
        if bool(((tensor < 0) | (tensor > most)).any()):
            raise CheckpointError(f"{item.stored}: has expert numbers out of range; allowed: 0 to {most}")


def _changes(item: Item) -> bool:
    """Whether `_in_memory` may make another tensor of it."""
    shared = item.parameter.endswith(".scale") and item.format not in INTEGERS
    return item.dtype == torch.int32 or (shared and item.dtype == torch.float32)


def _in_memory(item: Item, tensor: Tensor) -> Tensor:
    """The parameter as the model keeps it: float32 powers of two become e8m0, integers int64."""
    if tensor.dtype == torch.int32:
        return tensor.to(torch.int64)
    if _changes(item):
        rows = tensor.view(-1, tensor.shape[-1]).split(1 << 16)  # in parts: a stack of scales can be large
        if all(is_e8m0(part) for part in rows):
            return torch.cat([encode_e8m0(part) for part in rows]).view(tensor.shape)
    return tensor
