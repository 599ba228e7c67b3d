"""The measurement: engines take turns in every repetition, with the machine's limit measured between them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fourfold.bench.engines import Cell, Engine, Sample
from fourfold.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure: every number of threads at every context (tokens already seen), `repetitions` times.

    prefill: tokens of a prompt; of several lengths the first after every context, the others from nothing.
    decode: tokens that follow one by one.
    """

    contexts: tuple[int, ...]
    threads: tuple[int, ...]
    prefill: tuple[int, ...]
    decode: int
    repetitions: int

    def cells(self, threads: int) -> list[Cell]:
        """One for each context, ascending; then one for each further length of a prompt, without decoding."""
        first, *others = dict.fromkeys(self.prefill)
        cells = [Cell(threads, context, first, self.decode) for context in sorted(set(self.contexts))]
        return cells + [Cell(threads, 0, length, 0) for length in others]

    @property
    def longest(self) -> int:
        """Positions that the measurement needs."""
        after = max(self.contexts) + max(self.prefill[0], self.decode)
        return max(after, *self.prefill)


def usual_contexts(longest: int) -> tuple[int, ...]:
    """What is measured if nobody says what: 0, 512 and 2048 tokens as far as `longest` allows, at least 0."""
    return (0, *(context for context in (512, 2048) if context <= longest))


class Limits(Protocol):
    """What `run` asks of a Machine."""

    def read_bandwidth(self, threads: int) -> float:
        """Bytes a second."""

    def peaks(self, threads: int) -> dict[str, float]:
        """Operations a second, by name."""


@dataclass
class Outcome:
    """All samples. bandwidth: bytes a second, beside the engines' samples of each cell.

    peaks: operations a second by threads and name, the best. left_out: peers that failed, and why.
    """

    samples: dict[tuple[str, Cell], list[Sample]] = field(default_factory=lambda: defaultdict(list))
    bandwidth: dict[Cell, list[float]] = field(default_factory=lambda: defaultdict(list))
    peaks: dict[int, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def run(
    own: Engine,
    peers: Sequence[Engine],
    machine: Limits,
    settings: Settings,
    progress: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Measure A, B, A, B, …: whatever disturbs the machine for a while hits every engine.

    A peer that fails is left out from there on; RequestError: our own engine failed.
    """
    outcome = Outcome()
    racing = [own, *peers]
    for threads in dict.fromkeys(settings.threads):
        for repetition in range(settings.repetitions):
            if repetition in (0, settings.repetitions - 1):
                _better(outcome.peaks.setdefault(threads, {}), machine.peaks(threads))
            for cell in settings.cells(threads):
                for engine in list(racing):
                    turn = f"{repetition + 1} of {settings.repetitions}, {threads} threads"
                    progress(f"{turn}, context {cell.context:,}, prompt {cell.prefill:,}: {engine.name}")
                    outcome.bandwidth[cell].append(machine.read_bandwidth(threads))
                    try:
                        outcome.samples[engine.name, cell].append(engine.measure(cell))
                    except RequestError as error:
                        if engine is own:
                            raise
                        racing.remove(engine)
                        outcome.left_out[engine.name] = str(error)
    return outcome


def _better(best: dict[str, float], found: dict[str, float]) -> None:
    for name, value in found.items():
        best[name] = max(value, best.get(name, 0.0))


def summary(values: Sequence[float | None]) -> dict[str, Any] | None:
    """{"best", "median", "samples"} of rates; None without any."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"best": max(known), "median": statistics.median(known), "samples": known}
