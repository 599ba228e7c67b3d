"""Process settings that make training on a CPU fast; nothing here changes a result."""

from __future__ import annotations

import ctypes
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 1 << 30


def prepare_cpu(threads: int) -> None:
    """Set the number of threads (0: leave it) and keep freed memory in the process.

    By default glibc gives every large tensor back to the kernel and takes fresh, zeroed pages for the next
    one. A training step allocates the same large tensors again and again; keeping them made element-wise
    work 3.7 times as fast on two Sapphire Rapids cores (7 -> 26 GB/s).
    """
    if threads > 0:
        torch.set_num_threads(threads)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
            libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
