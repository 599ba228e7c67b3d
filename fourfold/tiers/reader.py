"""Reads experts from disk into their slots, a matrix with its scales at a time.

Where the parts of an expert lie page-aligned both on disk and in the slot, one call of the system scatters
them straight into it.  Elsewhere (safetensors files align nothing) pages go through a buffer of the thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fourfold.errors import CheckpointError
from fourfold.tiers.files import WatchedFile, say
from fourfold.tiers.table import PAGE, ExpertTable, Part
from fourfold.weights.formats import E8M0_NAN
from fourfold.weights.memory import reserve

READERS = 4
"""Pieces in flight: three of them, an expert's, keep an NVMe disk busy."""
BUFFER = 4 << 20
"""Largest piece that goes through a buffer: bytes a reader holds besides the slots."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Run:
    """Bytes start..start+size of a file, and the parts of a slot that they fill, one after the other."""

    file: int
    start: int
    parts: list[int]
    size: int


class ExpertReader:
    """Reads experts of a table; its methods may be called from several threads, each with its own buffer."""

    def __init__(self, table: ExpertTable) -> None:
        self.table = table
        self._files = [WatchedFile(path) for path in table.files]
        self._sizes = [part.nbytes for part in table.parts]
        self._parts = _by_matrix(table.parts)
        self.pieces = [sum(self._sizes[p] for p in parts) for parts in self._parts]
        """The bytes of each piece of an expert: a matrix with its scales."""
        self._whole_pages = all(size % PAGE == 0 for size in self._sizes)
        if refused := [file.path.name for file in self._files if not file.direct]:
            say(
                f"{refused[0]}: its file system refuses direct reads (O_DIRECT); experts are read through "
                "the page cache, which is slower and takes RAM from others"
            )

    def buffer(self) -> Bytes:
        """Page-aligned room for one thread."""
        return aligned_bytes(buffer_bytes(self.table.expert_bytes))

    def read(self, expert: int, piece: int, slot: Sequence[Bytes], buffer: Bytes) -> None:
        """Fill those parts of a slot, contiguous bytes each.  CheckpointError: file or scales are broken."""
        for run in self._runs(expert, self._parts[piece]):
            into = [slot[p] for p in run.parts]
            file = self._files[run.file]
            if self._whole_pages and run.start % PAGE == 0 and all(_at_page(part) for part in into):
                file.read([part.data for part in into], run.start, run.size)
            else:
                _through_buffer(file, run, into, buffer)
        for p in self._parts[piece]:
            part = self.table.parts[p]
            if part.name.endswith(".scale") and not _sound(slot[p], part.dtype):
                raise CheckpointError(
                    f"{self._files[0].path.parent}: {self.table.name(expert)}.{part.name} has scales that "
                    "are not numbers above 0. Download it again"
                )

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _runs(self, expert: int, parts: Sequence[int]) -> list[_Run]:
        """These parts of an expert, those that follow each other on disk joined."""
        files, offsets = self.table.file[expert].tolist(), self.table.offset[expert].tolist()
        runs: list[_Run] = []
        for p in sorted(parts, key=lambda p: (files[p], offsets[p])):
            last = runs[-1] if runs else None
            if last is not None and last.file == files[p] and last.start + last.size == offsets[p]:
                runs[-1] = _Run(last.file, last.start, [*last.parts, p], last.size + self._sizes[p])
            else:
                runs.append(_Run(files[p], offsets[p], [p], self._sizes[p]))
        return runs


def _by_matrix(parts: Sequence[Part]) -> list[list[int]]:
    """The numbers of the parts of each matrix."""
    found: dict[str, list[int]] = {}
    for p, part in enumerate(parts):
        found.setdefault(part.name.partition(".")[0], []).append(p)
    return list(found.values())


def buffer_bytes(expert_bytes: int) -> int:
    """Of one thread's buffer: an expert with a page before and after it, or BUFFER if that is less."""
    return min(BUFFER, -(-expert_bytes // PAGE) * PAGE + 2 * PAGE)


def aligned_bytes(size: int) -> Bytes:
    """Zeroed memory at the beginning of a page, as weights get it."""
    return np.frombuffer(reserve(size), dtype=np.uint8)


def _at_page(part: Bytes) -> bool:
    return part.ctypes.data % PAGE == 0


def _through_buffer(file: WatchedFile, run: _Run, into: Sequence[Bytes], buffer: Bytes) -> None:
    stop = run.start + run.size
    targets = _Targets(into)
    for begin in range(run.start // PAGE * PAGE, stop, len(buffer)):
        size = min(len(buffer), -(-(stop - begin) // PAGE) * PAGE)
        file.read([buffer[:size].data], begin, min(size, stop - begin))
        targets.fill(buffer[max(run.start - begin, 0) : min(size, stop - begin)])


class _Targets:
    """Arrays that are filled one after the other."""

    def __init__(self, arrays: Sequence[Bytes]) -> None:
        self._left = list(arrays)

    def fill(self, source: Bytes) -> None:
        while len(source):
            target = self._left[0]
            count = min(len(source), len(target))
            target[:count] = source[:count]
            source = source[count:]
            if count == len(target):
                self._left.pop(0)
            else:
                self._left[0] = target[count:]


def _sound(scale: Bytes, dtype: torch.dtype) -> bool:
    """As the loader checks them (weights/load.py)."""
    if dtype == torch.float32:
        values = scale.view(np.float32)
        return bool(((values > 0) & (values < np.inf)).all())
    return bool(scale.max() < E8M0_NAN)
