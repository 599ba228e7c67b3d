"""The safetensors file format: headers read and checked whole, tensors read and written as a stream.

A file is 8 bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, and the data without
holes.  Reading maps the file and copies out of the mapping, which is dropped every 256 MiB: mapped pages
count as this process's memory, and a checkpoint may be larger than it.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fourfold.config_values import parse_json
from fourfold.errors import CheckpointError

BITS = {
    "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "I8": 8, "U8": 8, "BF16": 16, "F32": 32, "I64": 64, "I32": 32,
    "U64": 64,
}  # fmt: skip
"""Bits per value of the header dtypes that a V4 checkpoint may use."""
HEADER_DTYPES = {
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.int32: "I32",
}

_LONGEST_HEADER = 256 << 20
_REMAP_EVERY = 256 << 20
_CHUNK = 64 << 20


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its header entry; start and stop are byte positions in the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.file.name}: {self.name}"


def read_header(file: Path) -> list[Stored]:
    """The tensors of `file`, in file order; CheckpointError if header and file do not fit together."""
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if length > min(size - 8, _LONGEST_HEADER):
                raise CheckpointError(
                    f"{file}: truncated or not safetensors: {size} bytes do not hold a header of {length}. "
                    "Download it again"
                )
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
    header = _parse(file, text)
    header.pop("__metadata__", None)
    tensors = [_entry(file, name, value, 8 + length) for name, value in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    _check_data(file, tensors, 8 + length, size)
    return tensors


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    try:
        header = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: the safetensors header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{file}: the safetensors header must be an object, found {type(header).__name__}"
        )
    return header


def _entry(file: Path, name: str, value: Any, data: int) -> Stored:
    where = f"{file.name}: {name}"
    if not isinstance(value, dict) or not isinstance(value.get("dtype"), str):
        raise CheckpointError(f"{where}: a broken header entry: {value!r}")
    dtype, shape, offsets = value["dtype"], value.get("shape"), value.get("data_offsets")
    if not _whole(shape) or not _whole(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: a broken header entry: {value!r}")
    if dtype not in BITS:
        raise CheckpointError(f"{where}: dtype is {dtype}; allowed: {', '.join(BITS)}")
    expected = math.prod(shape) * BITS[dtype] // 8
    if offsets[1] - offsets[0] != expected:
        found = offsets[1] - offsets[0]
        raise CheckpointError(f"{where}: {dtype} {shape} takes {expected} bytes, the header gives it {found}")
    return Stored(name, file, dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _whole(numbers: Any) -> TypeGuard[list[int]]:
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


def _check_data(file: Path, tensors: Sequence[Stored], start: int, size: int) -> None:
    position = start
    for tensor in tensors:
        if tensor.start != position:
            kind = "overlaps the tensor before it" if tensor.start < position else "leaves a hole before it"
            raise CheckpointError(f"{tensor}: its data {kind}")
        if tensor.stop > size:
            raise CheckpointError(
                f"{tensor}: the file is truncated: it has {size} bytes, this tensor ends at {tensor.stop}. "
                "Download it again"
            )
        position = tensor.stop
    if position != size:
        raise CheckpointError(f"{file}: {size - position} bytes follow the last tensor; the file is broken")


class Reader:
    """Copies tensors out of mapped files; a context manager.  One file is open at a time."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._map: mmap.mmap | None = None
        self._copied = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    def copy(self, stored: Stored, into: Tensor, advance: Callable[[int], object] | None = None) -> Tensor:
        """Fill the contiguous `into`, on any device, with the bytes of `stored`; returns `into`."""
        target = into.view(-1).view(torch.uint8) if into.dim() else into.view(1).view(torch.uint8)
        assert target.numel() == stored.nbytes, (str(stored), into.shape, into.dtype)
        for begin in range(0, stored.nbytes, _CHUNK):
            count = min(_CHUNK, stored.nbytes - begin)
            source = torch.frombuffer(
                self._mapping(stored), dtype=torch.uint8, offset=stored.start + begin, count=count
            )
            target[begin : begin + count].copy_(source)
            del source  # else the mapping would outlive its turn
            self._copied += count
            if advance is not None:
                advance(count)
        return into

    def _mapping(self, stored: Stored) -> mmap.mmap:
        if self._map is None or self._file != stored.file or self._copied >= _REMAP_EVERY:
            self._drop()
            try:
                with stored.file.open("rb") as stream:
                    # Copy-on-write and never written: torch warns about read-only memory.
                    self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{stored.file}: cannot be mapped ({error})") from error
            self._file = stored.file
        if len(self._map) < stored.stop:
            raise CheckpointError(f"{stored}: the file became shorter while it was read")
        return self._map

    def _drop(self) -> None:
        # Not closed: torch does not hold the buffer, so close() would succeed under the feet of a view that
        # is still in use.  A mapping goes with the last reference to it, and every view holds one.
        self._map, self._copied = None, 0


@dataclass(frozen=True)
class Pending:
    """A tensor to be written: what the header must know now, and how to get the tensor when its turn comes.

    shape and dtype are as in a header (F4 counts values).  note: what there is to say about it, for JSON,
    once it is loaded.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], Tensor]
    note: Callable[[], dict[str, Any]] | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * BITS[self.dtype] // 8


def write_file(file: Path, tensors: Sequence[Pending], advance: Callable[[int], object]) -> list[str]:
    """Write one safetensors file, holding one tensor at a time; returns the names in file order.

    They are asked for in the given order, so that parts of one conversion come one after the other.
    """
    # Widest values first, so that every tensor is aligned to its own width whatever came before it.
    ordered = sorted(tensors, key=lambda tensor: -BITS[tensor.dtype])
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places: dict[str, int] = {}
    position = 0
    for tensor in ordered:
        offsets = [position, position + tensor.nbytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        places[tensor.name] = position
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            value = tensor.load().detach().to("cpu").contiguous()
            assert value.nbytes == tensor.nbytes, (tensor.name, value.shape, value.dtype, tensor.shape)
            stream.seek(8 + len(text) + places[tensor.name])
            stream.write(value.view(-1).view(torch.uint8).numpy().data)
            advance(tensor.nbytes)
        stream.flush()
        os.fsync(stream.fileno())
    return [tensor.name for tensor in ordered]
