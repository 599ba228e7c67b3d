"""A page-aligned copy of a checkpoint's experts: each is read by one call, straight into its slot.

The file begins with a JSON header, padded to whole pages: what was copied, from which files, of which size
and time.  It is used again only where that is exactly the same.  It appears whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fourfold.errors import CheckpointError
from fourfold.tiers.files import appearing, say
from fourfold.tiers.memory import written
from fourfold.tiers.reader import ExpertReader, aligned_bytes
from fourfold.tiers.table import PAGE, ExpertTable
from fourfold.weights.progress import byte_progress

_FORMAT = "fourfold experts 1"


def copied(table: ExpertTable, folder: Path) -> ExpertTable:
    """The same experts in a page-aligned file of `folder`, which is written if it is not there.

    CheckpointError: the folder cannot be written to, or has no room.
    """
    header = _header(table)
    file = folder / f"experts-{hashlib.sha256(header).hexdigest()[:16]}.fourfold"
    starts, stride = _starts(table)
    size = len(header) + table.experts * stride
    if not _is(file, header, size):
        _check_room(folder, size)
        say(f"copying the experts to {file}, once: {written(size)}")
        _write(file, header, table, starts, stride)
    first = np.arange(table.experts, dtype=np.int64)[:, None] * stride + len(header)
    offset = first + np.array(starts, dtype=np.int64)
    nowhere: npt.NDArray[np.int64] = np.zeros_like(offset)
    return ExpertTable(table.layers, table.per_layer, table.parts, (file,), nowhere, offset)


def _header(table: ExpertTable) -> bytes:
    sources = [(path.name, (status := path.stat()).st_size, status.st_mtime_ns) for path in table.files]
    what = {
        "format": _FORMAT,
        "sources": sources,
        "layers": table.layers,
        "per_layer": table.per_layer,
        "parts": [(part.name, str(part.dtype), part.shape) for part in table.parts],
        "places": hashlib.sha256(table.file.tobytes() + table.offset.tobytes()).hexdigest(),
    }
    text = json.dumps(what).encode()
    return text + b" " * (-len(text) % PAGE)


def _starts(table: ExpertTable) -> tuple[list[int], int]:
    """Where each part begins within an expert, at a page, and the bytes from one expert to the next."""
    starts, position = [], 0
    for part in table.parts:
        starts.append(position)
        position += -(-part.nbytes // PAGE) * PAGE
    return starts, position


def _is(file: Path, header: bytes, size: int) -> bool:
    try:
        with file.open("rb") as stream:
            return os.fstat(stream.fileno()).st_size == size and stream.read(len(header)) == header
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}); remove it") from error


def _check_room(folder: Path, size: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        status = os.statvfs(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written to ({error.strerror})") from error
    free = status.f_bavail * status.f_frsize
    if free < size:
        raise _full(folder, size, free)


def _full(folder: Path, size: int, free: int) -> CheckpointError:
    return CheckpointError(
        f"{folder}: the copy of the experts takes {written(size)}, the disk has {written(free)} free. Make "
        "room, name a folder on another disk, or go without: experts are then read from the checkpoint"
    )


def _write(file: Path, header: bytes, table: ExpertTable, starts: list[int], stride: int) -> None:
    reader = ExpertReader(table)
    expert = aligned_bytes(stride)
    parts = [expert[start : start + part.nbytes] for start, part in zip(starts, table.parts, strict=True)]
    buffer = reader.buffer()
    size = len(header) + table.experts * stride
    try:
        with appearing(file) as stream, byte_progress("copying experts", size) as advance:
            stream.write(header)
            for number in range(table.experts):
                for piece in range(len(reader.pieces)):
                    reader.read(number, piece, parts, buffer)
                stream.write(expert.data)
                advance(stride)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(file.parent, size, 0) from error
        raise CheckpointError(f"{file}: cannot be written ({error.strerror})") from error
    finally:
        reader.close()
