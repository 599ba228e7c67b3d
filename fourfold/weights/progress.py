"""A progress bar for work counted in bytes: on stderr, only on a terminal, only when the work takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PATIENCE = 0.5  # seconds of work before a bar is worth showing


@contextmanager
def byte_progress(label: str, total: int, *, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Yields advance(n), to be called with the number of bytes just done."""
    if not show or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    columns = (TextColumn("fourfold: {task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    bar = Progress(*columns, Speed(), TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    task = bar.add_task(label, total=total)
    begun = time.monotonic()

    def advance(count: int) -> None:
        bar.advance(task, count)
        if not bar.live.is_started and time.monotonic() - begun > _PATIENCE:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()
