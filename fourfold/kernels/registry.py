"""Which chip runs which operation of the contract: tables by device type, and what falls back is told.

Kernels are looked for when a device type is first used: our own for `cpu` and `npu`, those that other
packages bring as entry points (chips.py) for all others.  Callers find all of this in `fourfold.kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

import fourfold.kernels as contract
from fourfold.errors import KernelError
from fourfold.kernels import chips, composed, reference
from fourfold.kernels.formats import Rounding
from fourfold.kernels.recording import Recorder

OPERATIONS = (
    "linear",
    "grouped_linear",
    "experts",
    "route_topk",
    "route_hash",
    "rms_norm",
    "rope",
    "pool",
    "hadamard",
    "index_topk",
    "sparse_attention",
    "hc_pre",
    "hc_post",
    "hc_head",
    "round_fp8",
    "round_fp4",
    "pack_rows",
    "unpack_rows",
    "attention_inputs",
    "attention",
    "compressor_inputs",
    "compressor_entries",
    "index_queries",
    "hc_input",
    "hc_next",
    "shared_expert",
    "moe",
    "hc_moe",
    "block",
)
COMPOSED = OPERATIONS[OPERATIONS.index("attention_inputs") :]
"""Operations that are several others in a row; a chip without its own form runs those (composed.py)."""

_REFERENCE: dict[str, Callable[..., Any]] = {
    name: partial(getattr(composed, name), contract) if name in COMPOSED else getattr(reference, name)
    for name in OPERATIONS
}
_TABLES: dict[str, dict[str, Callable[..., Any]]] = {}
_PLAIN: dict[str, Mapping[str, Callable[..., Any]]] = {}
"""What stands for the reference on devices that cannot run all of it."""
_NOTES: dict[str, dict[str, str]] = {}
_FP4_INPUTS: dict[str, Callable[[], Rounding]] = {}
_RECORDERS: dict[str, Recorder] = {}
_SEARCHED: set[str] = set()
"""Device types whose kernels were looked for: our own, or those of another package."""


def register(
    device: str,
    operations: Mapping[str, Callable[..., Any]],
    notes: Mapping[str, str],
    plain: Mapping[str, Callable[..., Any]] | None = None,
    fp4_input: Callable[[], Rounding] = lambda: Rounding.BF16,
    record: Recorder | None = None,
) -> None:
    """Let `operations` run on tensors of device type `device`; `notes` say what each covers.

    plain: what stands for the reference where this device cannot run it as it is.  fp4_input: which of
    Rounding.BF16, INT8_GROUPS and INT16_GROUPS these operations take fastest beside FP4 weights.  record: how
    this device records a pass, to repeat it.
    KernelError: an operation that the contract does not have.
    """
    if unknown := sorted(operations.keys() - set(OPERATIONS)):
        raise KernelError(
            f"kernels for {device} name operations outside the contract: {', '.join(unknown)}; "
            f"allowed: {', '.join(OPERATIONS)}"
        )
    _PLAIN[device] = plain or {}
    _TABLES[device] = {**_REFERENCE, **operations}
    _NOTES[device] = {name: notes.get(name, "native") for name in operations}
    _FP4_INPUTS[device] = fp4_input
    if record is not None:
        _RECORDERS[device] = record


def unregister(device: str) -> None:
    """Run everything of `device` on the reference again."""
    _SEARCHED.add(device)
    for table in (_TABLES, _NOTES, _PLAIN, _FP4_INPUTS, _RECORDERS):
        table.pop(device, None)


def discover(device: str) -> None:
    """Register our kernels for `device`, or those of an installed package; once, at its first use.

    KernelError: they cannot be imported, were not registered for this device type, or are set up wrongly.
    """
    if device in _SEARCHED:
        return
    point = None
    if device == "cpu":
        _register_cpu()
    elif device == "npu":
        from fourfold.kernels import ascend

        ascend.bring()
    else:
        point = chips.bring(device)
    if point is not None and device not in _TABLES:
        raise KernelError(
            f"{chips.origin(point)} is to bring the kernels for {device} and registered none; "
            f"its import must call fourfold.kernels.register({device!r}, …)"
        )
    _SEARCHED.add(device)


@contextmanager
def replaced(device: str, operations: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """For the length of a `with`, run `operations` on tensors of `device` and all others on the reference.

    Training needs this: the reference has derivatives, a chip's own kernels need not.
    """
    discover(device)
    with _running(device, {**_REFERENCE, **_PLAIN.get(device, {}), **operations}):
        yield


@contextmanager
def observed(device: str, watch: Mapping[str, Callable[[Callable[..., Any]], Any]]) -> Iterator[None]:
    """For the length of a `with`, run each operation of `watch` as watch[name](what runs it now).

    Operations that are several others in a row run as those, so that all their calls pass.
    """
    discover(device)
    parts = {**_TABLES.get(device, _REFERENCE), **{name: _REFERENCE[name] for name in COMPOSED}}
    with _running(device, {**parts, **{name: wrap(parts[name]) for name, wrap in watch.items()}}):
        yield


@contextmanager
def _running(device: str, operations: dict[str, Callable[..., Any]]) -> Iterator[None]:
    before = _TABLES.get(device)
    _TABLES[device] = operations
    try:
        yield
    finally:
        _TABLES.pop(device)
        if before is not None:
            _TABLES[device] = before


def table(device: str) -> dict[str, str]:
    """Operation -> what runs it on this device type: 'reference', or the chip's own note."""
    discover(device)
    notes = _NOTES.get(device, {})
    fallback = {name: "reference" if name not in COMPOSED else "its parts" for name in OPERATIONS}
    return {name: notes.get(name, fallback[name] if notes else "reference") for name in OPERATIONS}


def fp4_input(device: str) -> Rounding:
    """How `fast` numerics round inputs of FP4 weights on this device type: BF16, or what is faster."""
    discover(device)
    choose = _FP4_INPUTS.get(device)
    return Rounding.BF16 if choose is None else choose()


def recorder(device: str) -> Recorder | None:
    """How passes are recorded on this device type; None: they are not."""
    discover(device)
    return _RECORDERS.get(device)


def impl(name: str, x: Tensor) -> Callable[..., Any]:
    """What runs operation `name` on the device of x."""
    operations = _TABLES.get(x.device.type)
    return (_first_use(x.device.type) if operations is None else operations)[name]


def _first_use(device: str) -> dict[str, Callable[..., Any]]:
    discover(device)
    return _TABLES.get(device, _REFERENCE)


def _register_cpu() -> None:
    from fourfold.kernels import cpu

    if cpu.available():
        from fourfold.kernels.cpu import ops

        register("cpu", ops.OPS, ops.NOTES, fp4_input=ops.fp4_input)
