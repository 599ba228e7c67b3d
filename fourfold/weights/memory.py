"""Memory for weights: huge pages where the system has them, spread over the machine's memory nodes.

Decoding reads a model's weights once a token.  In pages of 4 KiB a tenth of that time goes into finding them.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

from fourfold.kernels import cpu

_HUGE_PAGE = 2 << 20
_BLOCK = 64 << 20  # of address space; small tensors share one and with it its huge pages
_ALIGNMENT = 64


def reserve(size: int) -> mmap.mmap:
    """`size` bytes of zeros, from the beginning of a page; RAM is taken when they are first written."""
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return mmap.mmap(-1, size)
    # Private: shared memory gets huge pages only where the administrator has allowed it.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    cpu.interleave(_address(memory), size)
    return memory


class WeightMemory:
    """Hands out tensors one after the other.  A block is given back when the last tensor in it is gone."""

    def __init__(self) -> None:
        self._block: mmap.mmap | None = None
        self._free = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor on the CPU, not yet written."""
        size = math.prod(shape) * dtype.itemsize
        if size >= _BLOCK:
            block, at = _whole_block(size)
        else:
            at = -(-self._free // _ALIGNMENT) * _ALIGNMENT
            if self._block is None or at + size > len(self._block):
                self._block, at = _whole_block(_BLOCK)
            block, self._free = self._block, at + size
        # A storage of its own for each: what is done to one tensor is no event of another's.
        whole = torch.frombuffer(block, dtype=torch.uint8, offset=at, count=size)
        return whole.view(dtype).view(shape)


def _whole_block(size: int) -> tuple[mmap.mmap, int]:
    """Reserved memory, and where in it `size` bytes begin at a huge page."""
    block = reserve(size + _HUGE_PAGE)
    return block, -_address(block) % _HUGE_PAGE


def _address(memory: mmap.mmap) -> int:
    return torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
