"""The processor's name."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

_INFO = Path("/proc/cpuinfo")


@functools.cache
def processor() -> str:
    """As far as the system tells: a name, or on Arm the numbers of who made it and of the core."""
    try:
        text = _INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        text = ""
    return _named(text) or platform.processor() or platform.machine()


def _named(text: str) -> str:
    """What Linux' /proc/cpuinfo says of the first processor."""
    facts: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    arm = [facts[key] for key in ("CPU implementer", "CPU part", "CPU variant") if key in facts]
    return facts.get("model name") or (f"Arm {' '.join(arm)}" if arm else "")
