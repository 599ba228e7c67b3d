"""`fourfold kernels`: which operation runs on what."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Annotated

import torch
import typer

from fourfold import kernels as contract
from fourfold.cli import console, options
from fourfold.kernels import ascend, cpu


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
    npu = {"npu": ascend.device.describe()} if "npu" in kinds else {}
    if json:
        console.document({"cpu": facts, **npu, "operations": tables})
        return
    rows = [
        (name if first else "", *line)
        for name in contract.OPERATIONS
        for first, line in _lines([tables[kind][name] for kind in kinds])
    ]
    console.table("", ("operation", *kinds), rows, justify="left")
    if facts["reason"]:
        console.note(f"cpu: reference only, {facts['reason']}")
    else:
        console.note(f"cpu: native kernels for {facts['isa']}, {facts['threads']} threads")
    for found in npu.values():
        console.note("npu: " + ", ".join(f"{key} {value}" for key, value in found.items()))


def _lines(notes: list[str]) -> Iterator[tuple[bool, tuple[str, ...]]]:
    """One operation's notes as lines, the first marked: what runs it, then each form that was refused."""
    parts = [note.split("; T") for note in notes]
    for number, line in enumerate(zip_longest(*parts, fillvalue="")):
        yield number == 0, tuple(f"T{part}" if number and part else part for part in line)


def _present() -> list[str]:
    """Kinds of device of this machine: the CPU, and the accelerator that torch found, if any."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ["cpu"] + ([accelerator.type] if accelerator is not None else [])
