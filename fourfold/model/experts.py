"""Where a layer's routed experts lie while it runs: all of them in its stacks, or some at a time.

The stacks w1, w3 [S, I, D] and w2 [S, D, I] of `moe.Experts` may have fewer rows than there are experts.
Who fills the rows is an `ExpertSource`; the model asks it which row holds which expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

from torch import Tensor


class ExpertSource(Protocol):
    """Fills the stacks of one layer's experts in time."""

    def expect(self, streams: Tensor, ids: Tensor) -> None:
        """The layer's block begins: its input streams [B, T, n, D] and token ids [B, T] are known."""

    def chosen(self, indices: Tensor) -> None:
        """The gate has chosen: indices [N, K] int64.  `passes` follows."""

    def passes(self, indices: Tensor) -> Iterator[Tensor | None]:
        """For each part of the chosen experts, in ascending order: the rows that hold them.

        indices [N, K] int64; yields places [E] int64, -1 for experts of other parts, or None where row e is
        expert e.  The rows stay as they are until the next is asked for.  CheckpointError: one cannot be
        read.
        """


class Resident:
    """All experts are in the stacks, in order."""

    def expect(self, streams: Tensor, ids: Tensor) -> None:
        """Nothing is to be prepared."""

    def chosen(self, indices: Tensor) -> None:
        """Nothing is to be fetched."""

    def passes(self, indices: Tensor) -> Iterator[Tensor | None]:
        """One part: all."""
        yield None


@dataclass(frozen=True)
class TierStats:
    """What streaming experts has cost so far.

    A layer that runs needs each expert that its tokens chose once.  hits: it was in RAM; prefetched: it was
    not, but its read had begun before it was asked for; misses: the rest.  prefetch_wasted: experts that
    were read ahead and evicted unused, or given up halfway.  stall_seconds: time in which the computation
    waited for reads.  slots, experts: how many RAM holds, of how many.
    """

    slots: int
    experts: int
    hits: int = 0
    prefetched: int = 0
    misses: int = 0
    prefetch_wasted: int = 0
    bytes_read: int = 0
    stall_seconds: float = 0.0

    def to_dict(self) -> dict[str, int | float]:
        """For JSON."""
        return asdict(self)

    def __sub__(self, before: TierStats) -> TierStats:
        """What happened since `before`."""
        now, then = asdict(self), asdict(before)
        return TierStats(self.slots, self.experts, **{k: now[k] - then[k] for k in list(now)[2:]})


class Tiers(Protocol):
    """What streams the experts of a whole model."""

    def stats(self) -> TierStats:
        """The counters up to now."""

    def close(self) -> None:
        """Stop reading and close the files; the model cannot run any more."""
