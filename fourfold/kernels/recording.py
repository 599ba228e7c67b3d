"""Passes that a device records once and then repeats by itself: the host launches no operation any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor


@dataclass(frozen=True)
class Recording:
    """replay: run what was recorded, on what its inputs hold now, and write `results` again.

    memory: the device's name for where it keeps what lies between, which other recordings may share.
    """

    results: tuple[Tensor, ...]
    replay: Callable[[], None]
    memory: object


Recorder: TypeAlias = Callable[[Callable[[], tuple[Tensor, ...]], Recording | None], Recording]
"""record(run, beside): record what `run` does with tensors that stay where they are; nothing is computed.

beside: a recording that never runs at the same time, to share memory with.  Raises whatever the device raises
where `run` asks it for a value or brings one from the host.
"""
