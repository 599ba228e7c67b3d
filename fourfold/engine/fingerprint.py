"""What the bits of a cache depend on, as a key: caches of two keys are never mixed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fourfold import kernels
from fourfold.kernels import cpu
from fourfold.kernels.cpu.processor import processor
from fourfold.model.transformer import Transformer
from fourfold.tiers.store import TieredExperts

KEY_BYTES = 16
_WHOLE = 1 << 20
"""A tensor of so many bytes at most is hashed whole."""
_SAMPLES = 1 << 14
_PIECES, _PIECE = 64, 4096
_COMPUTES = ("model", "kernels")
"""Folders of this package whose code decides the bits of what is cached."""


def cache_key(facts: dict[str, str]) -> bytes:
    """The key of what `cache_facts` found.  [KEY_BYTES]"""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()[:KEY_BYTES]


def cache_facts(model: Transformer) -> dict[str, str]:
    """All that decides which bits a token's cache entries have: weights, numerics, code, machine.

    A fact that changes without need, such as the time of a streamed file that was only copied, costs a cache
    that begins empty; one that is missing here would cost wrong answers.
    """
    device = model.device
    shape = model.cache_shape
    return {
        "weights": _weights(model),
        "config": repr(model.config),
        "numerics": model.numerics.name,
        "streams": repr((shape.block_tokens, sorted(shape.slots.items()), sorted(shape.blocks.items()))),
        "code": _code(),
        "torch": f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}",
        "kernels": json.dumps(
            [cpu.describe()["isa"], kernels.fp4_input("cpu").name, kernels.table(device.type)]
        ),
        "machine": f"{platform.machine()} {_chip(device)}",
    }


def _weights(model: Transformer) -> str:
    """A hash of every tensor's name, type, shape and bytes: all of a small one, evenly spread ones of others.

    A changed run of more than a 16,384th of a tensor is always seen, and so is, but for a chance of e^-16,
    a change of a thousandth of its bytes wherever they lie: no training step changes less.
    """
    found = hashlib.sha256()
    streamed = _streamed(model)
    for name, tensor in sorted(model.state_dict().items()):
        if name.partition(".experts.")[0] in streamed:
            continue  # slots, whose contents change
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        found.update(_sample(tensor))
    if isinstance(model.tiers, TieredExperts):
        for piece in _of_files(model.tiers.table.files):
            found.update(piece)
        # Which experts an accelerator computes and which the CPU: they round differently.
        found.update(model.tiers.mine.tobytes())
    return found.hexdigest()


def _streamed(model: Transformer) -> set[str]:
    """Modules whose experts are read from files when they are needed."""
    if not isinstance(model.tiers, TieredExperts):
        return set()
    return {layer.removesuffix(".experts") for layer in model.tiers.table.layers}


def _sample(tensor: Tensor) -> bytes:
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    # An odd stride meets every byte of the elements in turn.
    stride = 1 if len(data) <= _WHOLE else len(data) // _SAMPLES | 1
    return data[::stride].cpu().numpy().tobytes()


def _of_files(files: tuple[Path, ...]) -> Iterator[bytes]:
    """Name, size and time of change of each, as what reads them compares these, and pieces spread over it."""
    for path in files:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            yield f"{path.name} {status.st_size} {status.st_mtime_ns} ".encode()
            for number in range(_PIECES):
                file.seek(status.st_size * number // _PIECES)
                yield file.read(_PIECE)


def _code() -> str:
    """A hash of the code that computes, the compiled one included."""
    package = Path(__file__).parent.parent
    found = hashlib.sha256()
    for path in sorted(path for part in _COMPUTES for path in (package / part).rglob("*")):
        if path.suffix in (".py", ".so", ".pyd"):
            found.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def _chip(device: torch.device) -> str:
    """Names of the processor, whose torch may choose other kernels than a sibling's, and of the device."""
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    host = f"{device.type} {processor()}"
    return host if device.type == "cpu" or name is None else f"{host} {name(device)}"
