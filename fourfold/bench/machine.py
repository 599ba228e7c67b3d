"""What this machine is, what it can do at most, and whether something else keeps it busy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fourfold import kernels
from fourfold.conformance.report import machine as certificate_machine
from fourfold.kernels import cpu
from fourfold.kernels.cpu import nodes
from fourfold.kernels.waiting import wait
from fourfold.plan.measure import probe_size

_PEAK_SECONDS = 0.1
_MATMUL = 2048  # rows and columns of torch's product: large enough for its full speed, 50 MB in float32
_STREAMS = (1, 2, 4, 8)


class Machine:
    """Measures reading from memory and multiplying: on a CPU in the extension where there is one, else in
    torch."""

    def __init__(self, threads: int, device: str = "cpu") -> None:
        """threads: the most that will be asked for; each touches its own part of the memory first."""
        self._device = torch.device(device)
        self._native = cpu.native if self._device.type == "cpu" else None
        size = probe_size()
        if self._native is not None:
            self._probe = self._native.ReadProbe(size, threads)
            self.bytes = self._probe.bytes
            # How many places at a time a core should read differs from one core to another: the fastest.
            self._streams = min(_STREAMS, key=lambda n: min(self._probe.seconds(1, n) for _ in range(2)))
        else:
            # int32: what every chip adds itself.
            self._words = torch.ones(size // 4, dtype=torch.int32, device=self._device)
            self.bytes = self._words.nbytes

    def read_bandwidth(self, threads: int) -> float:
        """Bytes a second that `threads` threads read from memory, over one pass."""
        if self._native is not None:
            return self.bytes / self._probe.seconds(threads, self._streams)
        with _torch_threads(threads):
            return self.bytes / self._seconds(self._words.amax)

    def peaks(self, threads: int) -> dict[str, float]:
        """Operations a second (a multiply-add is two) by type of the factors and what multiplies.

        "bf16 amx", "f32 avx512": instructions alone, in registers. "bf16 torch", "f32 torch": a large product
        of matrices in torch, what a library reaches.
        """
        found: dict[str, float] = {}
        if self._native is not None:
            for kind, unit in self._native.multipliers():
                found[f"{kind} {unit}"] = self._native.peak(kind, unit, threads, _PEAK_SECONDS)
        with _torch_threads(threads):
            for kind, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
                found[f"{kind} torch"] = self._matmul_rate(dtype)
        return found

    def _matmul_rate(self, dtype: torch.dtype) -> float:
        a = torch.ones(_MATMUL, _MATMUL, dtype=dtype, device=self._device)
        seconds = [self._seconds(lambda: a @ a) for _ in range(3)]
        return 2 * _MATMUL**3 / min(seconds)

    def _seconds(self, call: Callable[[], object]) -> float:
        wait(self._device)
        begin = time.perf_counter()
        call()
        wait(self._device)
        return time.perf_counter() - begin


def peak_of(peaks: dict[str, float], kind: str) -> float:
    """The highest peak of this type, whoever reaches it."""
    return max(value for name, value in peaks.items() if name.split()[0] == kind)


def describe(device: str = "cpu") -> dict[str, Any]:
    """Processor or accelerator, cores, memory and its nodes, instruction set in use and versions, for the
    document."""
    facts = certificate_machine(device)
    return {
        "processor": facts["device"],
        "usable_cores": usable_cores(),
        "memory_nodes": len(nodes.here()) or None,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "isa": cpu.describe()["isa"],
        "isa_reason": cpu.describe()["reason"],
        "kernels": kernels.table(torch.device(device).type),
        "system": facts["system"],
        "python": facts["python"],
        "torch": facts["torch"],
    }


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def activity(seconds: float = 0.3) -> dict[str, float | None]:
    """What else runs, while we wait for `seconds`.

    load: the load average of the last minute. busy_cores: cores that work for others, stolen_cores: those
    that the host kept for itself; None where the system does not tell.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    before, begin = _cpu_ticks(), time.perf_counter()
    time.sleep(seconds)
    after, took = _cpu_ticks(), time.perf_counter() - begin
    if before is None or after is None:
        return {"load": load, "busy_cores": None, "stolen_cores": None}
    ticks = os.sysconf("SC_CLK_TCK") * took
    busy, stolen = ((b - a) / ticks for a, b in zip(before, after, strict=True))
    return {"load": load, "busy_cores": round(busy, 2), "stolen_cores": round(stolen, 2)}


def complaints(found: dict[str, float | None], threads: int) -> Iterator[str]:
    """Why figures taken with so many threads now are suspect; nothing on a quiet machine."""
    if threads > usable_cores():
        yield f"{threads} threads share {usable_cores()} usable cores; their figures are suspect"
    others = (found["busy_cores"] or 0.0) + (found["stolen_cores"] or 0.0)
    if others > 0.1:
        yield f"the machine is busy: others use {others:.1f} of {os.cpu_count()} cores; figures are suspect"
    elif found["busy_cores"] is None and (found["load"] or 0.0) > 0.5:
        yield f"the machine is busy: load average {found['load']:.1f}; figures are suspect"


def _cpu_ticks() -> tuple[int, int] | None:
    """(working, stolen) ticks of all cores since the start of the system."""
    try:
        first = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()
    except OSError:  # not Linux
        return None
    user, nice, system, _idle, _wait, irq, soft, stolen = map(int, first[1:9])
    return user + nice + system + irq + soft, stolen


class _torch_threads:
    """For the length of a `with`, torch shares its work among so many threads."""

    def __init__(self, threads: int) -> None:
        self._threads, self._before = threads, torch.get_num_threads()

    def __enter__(self) -> None:
        torch.set_num_threads(self._threads)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)
