"""Where a layer's routed experts lie while it runs: all of them in its stacks, or some at a time.

The stacks w1, w3 [S, I, D] and w2 [S, D, I] of `moe.Experts` may have fewer rows than there are experts.
Who fills the rows is an `ExpertSource`; the model asks it which row holds which expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Asked:
    """What a layer's experts are to compute: x [N, D], and each token's experts, indices [N, K] int64 and
    weights [N, K] f32.

    others: the same on the CPU, for experts that lie there, where the stacks are on another device: `indices`
    then are the stacks' rows, and experts of the other side have weight 0.
    """

    x: Tensor
    indices: Tensor
    weights: Tensor
    others: Asked | None = None


class ExpertSource(Protocol):
    """Fills the stacks of one layer's experts in time."""

    def expect(self, streams: Tensor, ids: Tensor) -> None:
        """The layer's block begins: its input streams [B, T, n, D] and token ids [B, T] are known."""

    def chosen(self, asked: Asked) -> Asked:
        """The gate has chosen.  Returns what of it is for whom; `passes` follows, and `elsewhere`."""

    def passes(self, indices: Tensor) -> Iterator[Tensor | None]:
        """For each part of the chosen experts, in ascending order: the rows that hold them.

        indices [N, K] int64; yields places [E] int64, -1 for experts of other parts, or None where row e is
        expert e.  The rows stay as they are until the next is asked for.  CheckpointError: one cannot be
        read.
        """

    def elsewhere(self, others: Asked) -> Tensor | None:
        """What experts outside the stacks add, [N, D] f32 on the model's device; None: nothing."""


class Resident:
    """All experts are in the stacks, in order."""

    def expect(self, streams: Tensor, ids: Tensor) -> None:
        """Nothing is to be prepared."""

    def chosen(self, asked: Asked) -> Asked:
        """Nothing is to be fetched."""
        return asked

    def passes(self, indices: Tensor) -> Iterator[Tensor | None]:
        """One part: all."""
        yield None

    def elsewhere(self, others: Asked) -> None:
        """There are none."""


@dataclass(frozen=True)
class TierStats:
    """What streaming experts has cost so far.

    A layer that runs needs each expert that its tokens chose once.  hits: it was in RAM; prefetched: it was
    not, but its read had begun before it was asked for; misses: the rest.  prefetch_wasted: experts that
    were read ahead and evicted unused, or given up halfway.  stall_seconds: time in which the computation
    waited for reads.  slots, experts: how many RAM holds, of how many.  on_device: how many lie on the device
    instead; device_hits: those of them that were needed, in none of the other counters.
    """

    slots: int
    experts: int
    on_device: int = 0
    hits: int = 0
    prefetched: int = 0
    misses: int = 0
    prefetch_wasted: int = 0
    bytes_read: int = 0
    stall_seconds: float = 0.0
    device_hits: int = 0

    def to_dict(self) -> dict[str, int | float]:
        """For JSON."""
        return asdict(self)

    def __sub__(self, before: TierStats) -> TierStats:
        """What happened since `before`."""
        now, then = asdict(self), asdict(before)
        spent = {k: now[k] - then[k] for k in list(now)[3:]}
        return TierStats(self.slots, self.experts, self.on_device, **spent)


class Tiers(Protocol):
    """What streams the experts of a whole model."""

    def stats(self) -> TierStats:
        """The counters up to now."""

    def close(self) -> None:
        """Stop reading and close the files; the model cannot run any more."""
