"""`fourfold kernels`: which operation runs on what."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from fourfold import kernels as contract
from fourfold.cli import console, options
from fourfold.kernels import cpu


def kernels(
    device: Annotated[
        str | None,
        typer.Option(
            callback=options.known_device,
            help="Kind of device: cpu, cuda, npu …",
            show_default="those of this machine",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Show what runs each operation.

    One column for each kind of device of this machine, or for --device.
    """
    kinds = _present() if device is None else [torch.device(device).type]
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
    """Kinds of device of this machine: the CPU, and the accelerator that torch found, if any."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ["cpu"] + ([accelerator.type] if accelerator is not None else [])
