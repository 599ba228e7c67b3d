"""Which expert is in which slot, which are on their way, and which must go.

A slot is empty, being filled, or holds an expert.  All of it is guarded by the queue's `changed`; only `done`
runs in a reader's thread.  An expert that could not be read leaves its slot empty and its error to whoever
waits for it, so nothing half read is ever used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Sequence

import numpy as np

from fourfold.errors import CheckpointError
from fourfold.tiers.policy import NextUse
from fourfold.tiers.queue import Read, ReadQueue
from fourfold.tiers.reader import Bytes

_EMPTY = -1


class ExpertCache:
    """S slots for the experts of all layers, numbered layer·E + expert."""

    def __init__(
        self,
        slots: int,
        layers: int,
        per_layer: int,
        readers: int,
        pieces: Sequence[int],
        buffer: Callable[[], Bytes],
        fill: Callable[[int, int, int, Bytes], None],
    ) -> None:
        self.per_layer = per_layer
        self.policy = NextUse(layers, per_layer)
        self.queue = ReadQueue(readers, pieces, buffer, fill, self._done)
        self.changed = self.queue.changed
        self.slot = np.full(layers * per_layer, _EMPTY, dtype=np.int64)
        """Expert -> slot that holds it or will."""
        self._holds = np.full(slots, _EMPTY, dtype=np.int64)
        self._reads: dict[int, Read] = {}
        self._errors: dict[int, Exception] = {}
        self._ahead: set[int] = set()
        """Experts that were read ahead and not used since."""
        self._wanted: set[int] = set()
        """Experts that this forward will use, or is believed to."""
        self.wasted = 0
        self.stalled = 0.0

    def ready(self, expert: int) -> bool:
        return bool(self.slot[expert] != _EMPTY) and expert not in self._reads

    def forget_wishes(self, experts: Container[int] | None = None) -> None:
        """These are wanted no more in this forward (None: nothing is); of reads ahead no more is begun."""
        # The wishes are few; `experts` may be a range over all layers.
        for expert in [e for e in self._wanted if experts is None or e in experts]:
            self._wanted.discard(expert)
            read = self._reads.get(expert)
            if read is not None and read.rank > 0 and self.queue.drop(read):
                self._release(expert)
                self._ahead.discard(expert)
                self.wasted += read.begun > 0

    def wish(self, experts: list[int]) -> None:
        """This forward will use these, or is believed to: they are not evicted."""
        self._wanted.update(experts)

    def read_ahead(self, experts: list[int], layer: int, tokens: int) -> None:
        """Begin to read what is not here of `experts`, which `layer` or later ones will ask for.

        Nothing that is wanted goes for it, and at most half of the slots are on their way at a time.
        """
        self.wish(experts)
        missing = [expert for expert in experts if self.slot[expert] == _EMPTY]
        for expert in experts:
            if (read := self._reads.get(expert)) is not None:
                self.queue.want(read, self._rank(expert, layer))
        room = len(self._holds) // 2 - len(self._reads)
        if not missing or room <= 0:
            return
        # The layer has not run yet: the one before it is the last that is done with.
        for expert, slot in zip(missing[:room], self._victims(layer - 1, tokens), strict=False):
            self._begin(expert, slot, self._rank(expert, layer))
            self._ahead.add(expert)

    def claim(self, experts: list[int]) -> tuple[int, int, int]:
        """A layer needs these now.  Returns how many are in a slot, were read ahead, are neither."""
        self.wish(experts)
        hits = ahead = 0
        for expert in experts:
            read = self._reads.get(expert)
            if expert in self._ahead and (read is None or read.begun > 0):
                ahead += 1
            elif self.slot[expert] != _EMPTY and read is None:
                hits += 1
            self._ahead.discard(expert)
            self._errors.pop(expert, None)
        return hits, ahead, len(experts) - hits - ahead

    def demand(self, experts: list[int], layer: int, tokens: int) -> None:
        """Begin to read what of these is not here, in their order, as far as slots can be had for them."""
        for expert in experts:
            if (read := self._reads.get(expert)) is not None:
                self.queue.want(read, 0)
        missing = [e for e in experts if self.slot[e] == _EMPTY and e not in self._errors]
        if not missing:
            return
        victims = self._victims(layer, tokens)
        for expert in missing:
            slot = next(victims, None)
            if slot is None:
                slot = self._sacrifice(expert)
            if slot is None:
                return
            self._begin(expert, slot, 0)

    def wait(self, expert: int) -> bool:
        """Until it is ready, or something else has changed; raises what kept it from being read.

        False: it is not ready; ask for it (again).  CheckpointError: reading has ended for good.
        """
        if error := self._errors.pop(expert, None):
            raise error
        if self.ready(expert):
            return True
        if self.queue.closed:
            raise CheckpointError(
                "the experts of this model are closed (tiers.close()); load the model again"
            )
        begun = time.perf_counter()
        try:
            self.changed.wait()
        finally:
            self.stalled += time.perf_counter() - begun
        return False

    def _victims(self, layer: int, tokens: int) -> Iterator[int]:
        """Slots that may be filled anew: empty ones, then those whose next use is expected last."""
        yield from np.flatnonzero(self._holds == _EMPTY).tolist()
        busy = self.slot[list(self._wanted | self._reads.keys())]
        free = np.ones(len(self._holds), dtype=bool)
        free[busy[busy != _EMPTY]] = False
        slots = np.flatnonzero(free & (self._holds != _EMPTY))
        order = np.argsort(-self.policy.distance(self._holds[slots], layer, tokens), kind="stable")
        yield from slots[order].tolist()

    def _sacrifice(self, expert: int) -> int | None:
        """A slot of what is wanted last, later than `expert`: of later layers first, then of this one."""
        layer = expert // self.per_layer
        rest = [e for e in self._wanted if e > expert and self.ready(e)]
        others = [e for e in rest if e // self.per_layer != layer]
        if not rest:
            return None
        return int(self.slot[max(others or rest)])

    def _begin(self, expert: int, slot: int, rank: int) -> None:
        if (old := int(self._holds[slot])) != _EMPTY:
            self._release(old)
            if old in self._ahead:
                self._ahead.discard(old)
                self.wasted += 1
        self._errors.pop(expert, None)
        self.slot[expert], self._holds[slot] = slot, expert
        self._reads[expert] = self.queue.push(expert, slot, rank)

    def _release(self, expert: int) -> None:
        self._reads.pop(expert, None)
        self._holds[self.slot[expert]] = _EMPTY
        self.slot[expert] = _EMPTY

    def _rank(self, expert: int, layer: int) -> int:
        """Of a read ahead that begins when `layer` does."""
        return 1 + expert // self.per_layer - layer

    def _done(self, read: Read) -> None:
        del self._reads[read.expert]
        if read.error is None and not read.dropped:
            return
        self._release(read.expert)
        self.wasted += read.expert in self._ahead
        self._ahead.discard(read.expert)
        if read.error is not None:
            self._errors[read.expert] = read.error
