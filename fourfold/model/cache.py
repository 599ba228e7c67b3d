"""The KV cache of a batch of equally long sequences, and how a call reads and extends it.

Per layer: the last W window entries, and in compressed layers the pending inputs of the open block plus all
finished entries (and the same for the index keys).  A margin of older rows is kept, so that the last tokens
can be taken back as if they had never been seen.  V4 report 3.6.
"""

from __future__ import annotations

from fourfold.config import ModelConfig
from fourfold.errors import CacheError
from fourfold.model.buffers import BufferGroup
from fourfold.model.layout import Segment
from fourfold.model.memory import FRESH, LayerMemory, MtpMemory

DEFAULT_MAX_ROLLBACK = 256
"""Tokens that can always be taken back; costs this many more rows of window and pending inputs a layer."""


class Cache:
    """Memory of `batch` equally long sequences, for the model `owner` alone.  `length` tokens have been seen.

    max_rollback: tokens that `rollback` can take back at any time (more, when they still happen to be held).
    """

    def __init__(self, config: ModelConfig, owner: object, batch: int, max_rollback: int) -> None:
        if batch < 1 or max_rollback < 0:
            raise CacheError(
                f"batch is {batch}, max_rollback is {max_rollback}; allowed: at least 1 and at least 0"
            )
        self.config = config
        self.owner = owner
        self.batch = batch
        self.length = 0
        self.window = BufferGroup(keep=config.sliding_window - 1 + max_rollback)
        self.tails: dict[int, BufferGroup] = {}
        self.entries: dict[int, BufferGroup] = {}
        self.layers = [
            self._layer(kind, ratio, max_rollback)
            for kind, ratio in zip(config.layer_kinds, config.layer_ratios, strict=True)
        ]
        self.mtp = MtpMemory(config, batch, max_rollback) if config.num_nextn_predict_layers else None

    def _layer(self, kind: str, ratio: int, max_rollback: int) -> LayerMemory:
        window = self.window.new_buffer(self.batch)
        if not ratio:
            return LayerMemory(window, FRESH, FRESH, FRESH, FRESH)
        if ratio not in self.tails:
            self.tails[ratio] = BufferGroup(keep=2 * ratio + max_rollback)
            self.entries[ratio] = BufferGroup(unit=ratio, keep=None)
        tail, entries = self.tails[ratio].new_buffer, self.entries[ratio].new_buffer
        if kind != "csa":
            return LayerMemory(window, tail(self.batch), entries(self.batch), FRESH, FRESH)
        return LayerMemory(
            window, tail(self.batch), entries(self.batch), tail(self.batch), entries(self.batch)
        )

    def segment(self, new: int) -> Segment:
        """Make room for `new` tokens and say where they will lie."""
        for group in (self.window, *self.tails.values(), *self.entries.values()):
            group.reserve(self.length, new)
        starts = {ratio: group.start for ratio, group in self.tails.items()}
        return Segment(self.length, new, self.window.start, starts)

    def advance(self, new: int, *, guessed: bool) -> None:
        """The `new` tokens of a finished call count from now on; guessed: the MTP block has run on them."""
        self.length += new
        if guessed and self.mtp is not None:
            self.mtp.length = self.length - 1

    def rollback(self, k: int) -> None:
        """Forget the last k tokens: what follows is the same as if they had never been seen.

        CacheError: k is negative, more than was seen, or older than what the cache still holds.
        """
        possible = self.max_rollback()
        if not isinstance(k, int) or (not 0 <= k <= possible and k != self.length):
            raise CacheError(
                f"cannot take back {k!r} tokens of {self.length}; allowed: 0 to {possible}, or all. "
                "Make the cache with a larger max_rollback"
            )
        self.length -= k
        if self.length == 0:
            for group in (self.window, *self.tails.values()):
                group.restart(0)
        if self.mtp is not None:
            self.mtp.rollback(self.length)

    def max_rollback(self) -> int:
        """How many of the last tokens can be taken back now."""
        needed = max(self.window.start + self.config.sliding_window - 1 if self.window.start else 0, 0)
        if self.mtp is not None and self.mtp.history.start:
            needed = max(needed, self.mtp.history.start + self.config.sliding_window)
        for ratio, group in self.tails.items():
            # The open block and, where blocks overlap, the one before it must be whole.
            if group.start:
                needed = max(needed, -(-group.start // ratio) * ratio + ratio)
        return max(self.length - needed, 0)

    @property
    def bytes(self) -> int:
        """Memory held by the buffers, in bytes."""
        groups = [self.window, *self.tails.values(), *self.entries.values()]
        return sum(group.bytes for group in groups) + (self.mtp.bytes if self.mtp else 0)
