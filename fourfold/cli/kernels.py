"""`fourfold kernels`: which operation runs on what."""

from __future__ import annotations

import torch

from fourfold import kernels as contract
from fourfold.cli import console, options
from fourfold.errors import RequestError
from fourfold.kernels import cpu


def kernels(device: options.Device = "", json: options.Json = False) -> None:
    """Show what runs each operation.

    One column for each kind of device of this machine, or for --device.
    """
    kinds = [_kind(device)] if device else _present()
    tables = {kind: contract.table(kind) for kind in kinds}
    facts = cpu.describe()
    if json:
        console.document({"cpu": facts, "operations": tables})
        return
    rows = [(name, *(tables[kind][name] for kind in kinds)) for name in contract.OPERATIONS]
    console.table("", ("operation", *kinds), rows, justify="left")
    if facts["reason"]:
        console.note(f"cpu: reference only, {facts['reason']}")
    else:
        console.note(f"cpu: native kernels for {facts['isa']}, {facts['threads']} threads")


def _present() -> list[str]:
    """Kinds of device of this machine: the CPU, and the accelerator that torch was built for, if there is
    one.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ["cpu"] + ([accelerator.type] if accelerator is not None else [])


def _kind(device: str) -> str:
    try:
        return torch.device(device).type
    except RuntimeError:
        raise RequestError(f"device is {device!r}; allowed: cpu, cuda, npu … as torch names them") from None
