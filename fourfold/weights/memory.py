"""Memory for weights: in huge pages, where the system has them for the asking.

Every token reads all of its weights.  With pages of 4 KiB the processor looks up hundreds of thousands of
addresses a token, and its prefetching ends at each page.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

HUGE_PAGE = 2 << 20


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """torch.empty; on the CPU the whole huge pages of a large tensor are asked for as such."""
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    if torch.device(device).type != "cpu" or nbytes < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    # Shared memory, mmap's default, has no huge pages.
    memory = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    begin = -torch.frombuffer(memory, dtype=torch.uint8, count=1).data_ptr() % HUGE_PAGE
    try:
        memory.madvise(mmap.MADV_HUGEPAGE, begin, nbytes // HUGE_PAGE * HUGE_PAGE)
    except OSError:
        pass  # a kernel built without them: ordinary pages hold the same bytes
    return torch.frombuffer(memory, dtype=torch.uint8, offset=begin, count=nbytes).view(dtype).view(shape)
