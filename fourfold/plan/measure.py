"""This machine's hardware facts, measured in a few seconds: plain read, bf16 matmul peak, disk.

`Probe` is what a measurement must offer; `TorchProbe` offers it with torch alone, `NativeProbe` reads with
the native kernels' own probe, as `fourfold bench` does.
"""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

from fourfold.errors import RequestError
from fourfold.kernels import cpu
from fourfold.kernels.cpu import nodes
from fourfold.kernels.cpu.processor import processor
from fourfold.plan.tables import Figure, Hardware

_SMALLEST_PROBE = 256 << 20
_SHARE_OF_FREE_MEMORY = 8  # the probe takes at most this part
_STREAMS = (1, 2, 4, 8)
_SECONDS = 0.8  # of each measurement: the best of what fits in
_MATMUL_SIZES = (1024, 2048)
_DISK_BYTES = 512 << 20  # of the file that is written where a folder is to be measured
_DISK_READS_IN_FLIGHT = 6
_DISK_ALIGNMENT = 4096
_DISK_SECONDS = 2.0


class Probe(Protocol):
    """What a machine does at best, all threads together."""

    def read_bandwidth(self) -> float:
        """Bytes a second of reading memory that no cache holds."""

    def matmul_peak(self) -> float:
        """Operations a second of a bf16 matrix product (2 for a multiplication and its addition)."""


class TorchProbe:
    """Measures with torch, with the number of threads that torch is set to."""

    def read_bandwidth(self) -> float:
        """A dot product of two halves of a large array: two streams, each value used once."""
        half = torch.ones(probe_size() // 8)
        other = torch.ones_like(half)
        return _best(lambda: torch.dot(half, other), 2 * half.nbytes)

    def matmul_peak(self) -> float:
        """Square bf16 products, the better of two sizes."""
        rates = []
        for size in _MATMUL_SIZES:
            a = torch.randn(size, size).to(torch.bfloat16)
            b = torch.randn(size, size).to(torch.bfloat16)
            rates.append(_best(lambda a=a, b=b: a @ b, 2 * size**3))  # type: ignore[misc]
        return max(rates)


class NativeProbe(TorchProbe):
    """Reads with the extension's threads, each its own part, from as many places at once as is fastest."""

    def read_bandwidth(self) -> float:
        """One pass over memory that these threads touched first, the best of several."""
        assert cpu.native is not None
        threads = cpu.native.threads()
        probe = cpu.native.ReadProbe(probe_size(), threads)
        return max(_best(lambda n=n: probe.seconds(threads, n), probe.bytes) for n in _STREAMS)  # type: ignore[misc]


def measure_here(probe: Probe | None = None) -> Hardware:
    """This machine's processor and RAM, as Hardware; `available` is what is free now.

    Its cores are the threads that compute.
    """
    probe = probe or (NativeProbe() if cpu.available() else TorchProbe())
    total, available = memory()
    today = datetime.datetime.now(tz=datetime.UTC).date()
    values = {
        "memory_gb": total / 1e9,
        "bandwidth_gb_s": probe.read_bandwidth() / 1e9,
        "bf16_tflops": probe.matmul_peak() / 1e12,
        "cores": float(cpu.describe()["threads"]),
    }
    return Hardware(
        name="here",
        title=f"this machine, {processor()}",
        kind="cpu",
        figures={
            name: Figure(value=value, source="measured here", checked=today) for name, value in values.items()
        },
        measured=True,
        nodes=len(nodes.here()) or None,
        available=available,
    )


def memory() -> tuple[int, int]:
    """RAM of this machine in bytes: all of it, and what programs can still get."""
    page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    total = page * pages
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux: nothing better is known than the total
        free = total
    return total, free


def probe_size() -> int:
    """Bytes that are read to measure the bandwidth: twice the last cache, as far as free memory allows."""
    wanted = max(2 * _last_cache(), _SMALLEST_PROBE)
    return min(wanted, max(memory()[1] // _SHARE_OF_FREE_MEMORY, _SMALLEST_PROBE))


def _last_cache() -> int:
    """Bytes of the largest cache that the system tells of; 32 MiB if it tells of none."""
    sizes = [32 << 20]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text(encoding="utf-8").strip()
        if text.endswith("K") and text[:-1].isdecimal():
            sizes.append(int(text[:-1]) << 10)
    return max(sizes)


def disk_read_rate(path: Path, block: int) -> float:
    """Bytes a second of reading `block` bytes at random places of the file `path`, several reads in flight.

    Of a folder: of a file that is written there for the measurement and removed.  The page cache is gone
    around where the file system allows it.  RequestError: nothing of that size can be read there.
    """
    block = max(block // _DISK_ALIGNMENT, 1) * _DISK_ALIGNMENT
    try:
        with _file_in(path, max(_DISK_BYTES, 4 * block)) as file:
            size = file.stat().st_size
            if size < 2 * block:
                raise RequestError(
                    f"--disk {path} has {size:,} bytes; allowed: {2 * block:,} (two experts) or a folder"
                )
            return _random_reads(file, size, block)
    except OSError as error:
        raise RequestError(f"--disk {path}: cannot be measured ({error.strerror or error})") from error


@contextmanager
def _file_in(path: Path, size: int) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    with tempfile.NamedTemporaryFile(dir=path, prefix="fourfold-plan-") as file:
        part = os.urandom(1 << 20)  # compressible data would flatter some disks
        for _ in range(-(-size // len(part))):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)


def _random_reads(file: Path, size: int, block: int) -> float:
    handle = _open_uncached(file)
    places = torch.randint(0, (size - block) // _DISK_ALIGNMENT + 1, (4096,)).mul_(_DISK_ALIGNMENT).tolist()
    begin = time.perf_counter()

    def reader(worker: int) -> int:
        import mmap

        done = 0
        with mmap.mmap(-1, block) as buffer:  # aligned, as uncached reads demand
            for place in places[worker::_DISK_READS_IN_FLIGHT]:
                if time.perf_counter() - begin > _DISK_SECONDS:
                    break
                done += os.preadv(handle, [buffer], place)
        return done

    try:
        with ThreadPoolExecutor(_DISK_READS_IN_FLIGHT) as pool:
            total = sum(pool.map(reader, range(_DISK_READS_IN_FLIGHT)))
        return total / (time.perf_counter() - begin)
    finally:
        os.close(handle)


def _open_uncached(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
    except OSError:  # a file system without uncached reads, a RAM disk for one
        return os.open(file, os.O_RDONLY)


def _best(call: Callable[[], object], amount: int) -> float:
    """`amount` a second, best of a short while, at least three calls."""
    best, begin, calls = float("inf"), time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - begin < _SECONDS:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        calls += 1
    return amount / best
