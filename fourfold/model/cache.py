"""The KV cache of a batch of equally long sequences, and how a call reads and extends it.

Per layer: the last W window entries, and in compressed layers the pending inputs of the open block plus all
finished entries (and the same for the index keys).  A margin of older rows is kept, so that the last tokens
can be taken back as if they had never been seen.  V4 report 3.6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fourfold.config import ModelConfig
from fourfold.errors import CacheError
from fourfold.model.layout import Layout, Segment
from fourfold.model.streams import FreshStream, JoinedStream, KVStream, StreamGroup

DEFAULT_MAX_ROLLBACK = 256
"""Tokens that can always be taken back; costs this many more rows of window and pending inputs a layer."""


@dataclass(frozen=True)
class LayerStreams:
    """What one block remembers; the last four are unused where a layer has no compressor or indexer."""

    window: KVStream
    tail: KVStream
    entries: KVStream
    index_tail: KVStream
    index_entries: KVStream


_FRESH = FreshStream()
FRESH_LAYER = LayerStreams(_FRESH, _FRESH, _FRESH, _FRESH, _FRESH)


class Cache:
    """Memory of `batch` sequences of equal length.  `length` tokens have been seen.

    max_rollback: tokens that `rollback` can take back at any time (more, when they still happen to be held).
    """

    def __init__(self, config: ModelConfig, batch: int = 1, max_rollback: int = DEFAULT_MAX_ROLLBACK) -> None:
        if batch < 1 or max_rollback < 0:
            raise CacheError(
                f"batch is {batch}, max_rollback is {max_rollback}; allowed: at least 1 and at least 0"
            )
        self.config = config
        self.batch = batch
        self.length = 0
        self.window = StreamGroup(keep=config.sliding_window - 1 + max_rollback)
        self.tails: dict[int, StreamGroup] = {}
        self.entries: dict[int, StreamGroup] = {}
        self.layers = [
            self._layer(kind, ratio, max_rollback)
            for kind, ratio in zip(config.layer_kinds, config.layer_ratios, strict=True)
        ]
        self.mtp = MtpMemory(config, batch, max_rollback) if config.num_nextn_predict_layers else None

    def _layer(self, kind: str, ratio: int, max_rollback: int) -> LayerStreams:
        window = self.window.new_stream(self.batch)
        if not ratio:
            return LayerStreams(window, _FRESH, _FRESH, _FRESH, _FRESH)
        if ratio not in self.tails:
            self.tails[ratio] = StreamGroup(keep=2 * ratio + max_rollback)
            self.entries[ratio] = StreamGroup(unit=ratio, keep=None)
        tail, entries = self.tails[ratio].new_stream, self.entries[ratio].new_stream
        if kind != "csa":
            return LayerStreams(window, tail(self.batch), entries(self.batch), _FRESH, _FRESH)
        return LayerStreams(
            window, tail(self.batch), entries(self.batch), tail(self.batch), entries(self.batch)
        )

    def segment(self, new: int) -> Segment:
        """Make room for `new` tokens and say where they will lie."""
        for group in (self.window, *self.tails.values(), *self.entries.values()):
            group.reserve(self.length, new)
        starts = {ratio: group.start for ratio, group in self.tails.items()}
        return Segment(self.length, new, self.window.start, starts)

    def rollback(self, k: int) -> None:
        """Forget the last k tokens: what follows is the same as if they had never been seen.

        CacheError: k is negative, more than was seen, or older than what the cache still holds.
        """
        possible = self.max_rollback()
        if not 0 <= k <= possible and k != self.length:
            raise CacheError(
                f"cannot take back {k} tokens of {self.length}; allowed: 0 to {possible}, or all. "
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


class MtpMemory:
    """What the MTP block remembers: its own window, and the main model's last streams and token ids.

    The streams wait here until the block is asked for a prediction, so that a cache that never drafts pays no
    MTP arithmetic and one that starts later catches up over one window.
    """

    def __init__(self, config: ModelConfig, batch: int, max_rollback: int) -> None:
        self.reach = config.sliding_window
        self.length = 0
        self.window = StreamGroup(keep=config.sliding_window - 1 + max_rollback)
        self.history = StreamGroup(keep=config.sliding_window + 1 + max_rollback)
        self.layer = LayerStreams(self.window.new_stream(batch), _FRESH, _FRESH, _FRESH, _FRESH)
        self.streams = self.history.new_stream(batch)
        self.ids = self.history.new_stream(batch)

    def segment(self, past: int, new: int) -> Segment:
        """Positions to run now that the main model has seen past + new tokens: all that a window still
        needs."""
        first = max(self.length, past - self.reach, self.history.start)
        if first > self.length:
            self.window.restart(first)
        last = past + new - 1
        self.window.reserve(first, last - first)
        return Segment(first, last - first, self.window.start)

    def rollback(self, length: int) -> None:
        if length == 0:
            self.history.restart(0)
        # The entry of position t contains token t + 1.
        self.length = min(self.length, max(length - 1, 0))
        if self.length < self.window.start + self.reach - 1:
            # Too little of the window is left: build it again from the history when it is next needed.
            self.length = 0
            self.window.restart(0)

    @property
    def bytes(self) -> int:
        return self.window.bytes + self.history.bytes


def fresh_layers(config: ModelConfig) -> list[LayerStreams]:
    """Layers without memory, for whole sequences."""
    return [FRESH_LAYER] * config.num_hidden_layers


def join(caches: Sequence[Cache], layout: Layout) -> list[LayerStreams]:
    """The caches of several sequences as the one row that `layout` describes."""
    segments = layout.rows[0]
    config = caches[0].config

    def joined(layer: int, pick: Callable[[LayerStreams], KVStream], sizes: list[int]) -> KVStream:
        return JoinedStream([pick(cache.layers[layer]) for cache in caches], sizes)

    layers = []
    for i, ratio in enumerate(config.layer_ratios):
        tokens = [s.new for s in segments]
        blocks = [len(s.completed(ratio)) if ratio else 0 for s in segments]
        layers.append(
            LayerStreams(
                joined(i, lambda layer: layer.window, tokens),
                joined(i, lambda layer: layer.tail, tokens),
                joined(i, lambda layer: layer.entries, blocks),
                joined(i, lambda layer: layer.index_tail, tokens),
                joined(i, lambda layer: layer.index_entries, blocks),
            )
        )
    return layers


def layout_of(caches: Sequence[Cache], new: Sequence[int], device: torch.device) -> Layout:
    """One row with the next tokens of each cache's sequence."""
    row = [cache.segment(n) for cache, n in zip(caches, new, strict=True)]
    return Layout([row], caches[0].config.sliding_window, device)
