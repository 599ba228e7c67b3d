"""Native kernels for CPUs: matrix products that read FP4 and FP8 weights as they are stored.

`csrc/` is compiled into `_native` when the package is installed.  Where that did not happen (no compiler),
`available()` is False, everything runs on the reference, and `describe()` says why.

FOURFOLD_ISA      scalar, avx2, avx512, avx512vnni, avx512bf16, amx, neon or neondot: instead of the
                  fastest that runs; reference: none of them
FOURFOLD_THREADS  threads that share a product; torch.get_num_threads() if not set
"""

from __future__ import annotations

import os
from types import ModuleType

import torch

from fourfold.errors import KernelError
from fourfold.kernels.cpu import nodes


def _load() -> tuple[ModuleType | None, str]:
    """The extension ready for use, or why there is none.  KernelError: an environment variable is wrong."""
    wanted = os.environ.get("FOURFOLD_ISA", "")
    if wanted == "reference":
        return None, "FOURFOLD_ISA=reference"
    try:
        import fourfold.kernels.cpu._native as _native
    except ImportError as error:
        return None, f"the extension was not built when fourfold was installed (no C++ compiler?): {error}"
    if not _native.bind(torch.Tensor):
        return None, f"torch {torch.__version__} has no DLPack exchange interface (torch 2.13 has)"
    if wanted and not _native.use_isa(wanted):
        allowed = ", ".join((*_native.supported_isas(), "reference"))
        raise KernelError(f"FOURFOLD_ISA={wanted} does not run on this machine; allowed: {allowed}")
    _native.keep_freed_memory()
    _native.place_helpers(nodes.processors())
    _native.set_threads(_threads())
    return _native, ""


def _threads() -> int:
    text = os.environ.get("FOURFOLD_THREADS", "")
    if not text:
        return torch.get_num_threads()
    if not text.isdecimal() or int(text) < 1:
        raise KernelError(f"FOURFOLD_THREADS={text} is not a number of threads; allowed: 1 and more")
    return int(text)


native, _reason = _load()


def use_threads(count: int) -> None:
    """Share products among `count` threads from now on, whatever FOURFOLD_THREADS said."""
    if native is not None:
        native.set_threads(count)


def interleave(address: int, size: int) -> bool:
    """Let the pages of this memory, not yet written, alternate between the machine's memory nodes.

    False: there is one node, or the system refuses; pages then lie on the node of whoever first writes them.
    """
    numbers = [node.number for node in nodes.here()]
    return native is not None and len(numbers) > 1 and native.interleave(address, size, numbers)


def available() -> bool:
    """True where the extension is built and usable."""
    return native is not None


def describe() -> dict[str, str | int]:
    """isa ('reference' if none), threads, and reason: why the extension is not in use, empty if it is."""
    if native is None:
        return {"isa": "reference", "threads": torch.get_num_threads(), "reason": _reason}
    return {"isa": native.isa(), "threads": native.threads(), "reason": ""}
