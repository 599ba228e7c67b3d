"""A device named npu in pure Python: tensors on it are wrappers around CPU tensors, and mixing is an error.

No torch_npu and no CANN: this shows that nothing asks for CUDA, moves data between devices unseen, or lets a
CPU tensor into an operator of the device.  It changes torch for the whole process, so tests that use it run
in one of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Module:
    """What torch finds as torch.npu."""

    name = "Ascend910B1"

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """There is no generator of its own."""

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def get_device_name(self, device: object = None) -> str:
        return self.name

    def synchronize(self, device: object = None) -> None:
        """Nothing runs later."""

    def mem_get_info(self, device: object = None) -> tuple[int, int]:
        """Free and total bytes, of the smallest of the real ones."""
        return 32 << 30, 32 << 30

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class NpuTensor(Tensor):
    """A tensor on npu:0; `raw` is where its values are."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> NpuTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device="npu:0",
        )

    def __init__(self, raw: Tensor) -> None:
        self.raw = raw

    def tolist(self) -> Any:
        """torch refuses it for subclasses."""
        return self.raw.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"NpuTensor({self.raw})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, op: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(op, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sends factories for npu, and copies to it, to the device."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        wanted = device is not None and torch.device(device).type == "npu"
        if wanted or any(isinstance(x, NpuTensor) for x in tree_flatten((args, kwargs))[0]):
            return _run(op, args, kwargs)
        return op(*args, **kwargs)


class _Literals(TorchFunctionMode):
    """torch.tensor makes its values where no mode sees it: let it do so on the CPU, and copy them."""

    def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if call is not torch.tensor or kwargs.get("device") is None:
            return call(*args, **kwargs)
        device = kwargs.pop("device")
        return call(*args, **kwargs).to(device)


calls: Counter[str] = Counter()
"""How often each operator ran on the device."""


def install() -> None:
    """Give torch the device type npu; once in a process."""
    backend_registration._setup_privateuseone_for_python_backend("npu", backend_module=Module())


@contextmanager
def npu() -> Iterator[None]:
    """In a `with`: tensors can be made on npu."""
    with torch.no_grad(), _Mode(), _Literals():
        yield


def _run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    calls[str(op)] += 1
    flat = tree_flatten((args, kwargs))[0]
    if op not in _COPIES:
        for x in flat:
            if isinstance(x, Tensor) and not isinstance(x, NpuTensor) and x.dim() > 0:
                raise RuntimeError(f"{op}: a tensor on {x.device} among tensors on npu")
    device = kwargs.get("device")
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = op(*tree_map(_unwrapped, args), **tree_map(_unwrapped, kwargs))
    if device is not None and torch.device(device).type == "cpu":
        return result
    if op is torch.ops.aten.copy_.default and not isinstance(args[0], NpuTensor):
        return args[0]
    # An operator that works in place returns the very tensor that it was given.
    held = {id(x.raw): x for x in flat if isinstance(x, NpuTensor)}
    return tree_map(lambda x: held.get(id(x), NpuTensor(x)) if isinstance(x, Tensor) else x, result)


def _unwrapped(x: Any) -> Any:
    return x.raw if isinstance(x, NpuTensor) else x
