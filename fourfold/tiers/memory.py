"""How much RAM there is to use: what the kernel calls available, within the control group's limit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fourfold.errors import RequestError

_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]iB|B|)")

# cgroup v2 and v1: limit, usage, and the page cache within the usage that the kernel would give back.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def parse_ram(value: str | int, name: str = "ram") -> int:
    """24 GiB as "24GiB" or a number of bytes -> bytes.  RequestError: it is no positive size."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size <= 0:
        raise RequestError(
            f"{name} is {value!r}; allowed: a number of bytes above 0, or one with KiB, MiB, GiB or TiB "
            "(24GiB)"
        )
    return size


def written(size: float) -> str:
    """Bytes as `parse_ram` reads them: 1.5 GiB."""
    unit = next((name for name in ("TiB", "GiB", "MiB", "KiB") if size >= _UNITS[name]), "B")
    return f"{size / _UNITS[unit]:.{0 if unit == 'B' else 1}f} {unit}"


def free_ram(root: Path = Path("/")) -> int | None:
    """Bytes that this process could take without pushing others out; None where the system does not say.

    root: where proc and sys are.
    """
    meminfo = _text(root / "proc/meminfo")
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo, re.M)
    if found is None:
        return None
    return min([int(found[1]) * 1024, *_group_rooms(root)])


def _group_rooms(root: Path) -> Iterator[int]:
    """What each control group around this process has left, page cache that can go counted as left."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, names = root / "sys/fs/cgroup", _V2
        elif "memory" in controllers.split(","):
            base, names = root / "sys/fs/cgroup/memory", _V1
        else:
            continue
        group = base / path.lstrip("/")
        # Inside a container the path may be the host's, and only the top is there: it is the limit.
        for folder in (group, *group.parents):
            yield from _room(folder, names)
            if folder == base:
                break


def _room(folder: Path, names: tuple[str, str, str]) -> Iterator[int]:
    limit, usage = (_text(folder / name).strip() for name in names[:2])
    if not limit.isdecimal() or not usage.isdecimal():  # "max", or no such group here
        return
    cached = re.search(rf"^{names[2]} (\d+)$", _text(folder / "memory.stat"), re.M)
    yield max(0, int(limit) - int(usage) + (int(cached[1]) if cached else 0))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
