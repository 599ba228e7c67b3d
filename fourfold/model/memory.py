"""What single blocks remember between calls: a main layer's buffers, and the MTP block's own."""

from __future__ import annotations

from dataclasses import dataclass

from fourfold.config import ModelConfig
from fourfold.model.buffers import BufferGroup, FreshBuffer, KVBuffer
from fourfold.model.layout import Segment


@dataclass(frozen=True)
class LayerMemory:
    """What one block remembers; the last four are unused where a layer has no compressor or indexer."""

    window: KVBuffer
    tail: KVBuffer
    entries: KVBuffer
    index_tail: KVBuffer
    index_entries: KVBuffer


FRESH = FreshBuffer()
FRESH_LAYER = LayerMemory(FRESH, FRESH, FRESH, FRESH, FRESH)


class MtpMemory:
    """What the MTP block remembers: its own window, and the main model's last streams and token ids.

    The streams wait here until the block is asked for a prediction, so that a cache that never drafts pays no
    MTP arithmetic and one that starts later catches up over one window.
    """

    def __init__(self, config: ModelConfig, batch: int, max_rollback: int) -> None:
        self.reach = config.sliding_window
        self.length = 0
        self.window = BufferGroup(keep=config.sliding_window - 1 + max_rollback)
        self.history = BufferGroup(keep=config.sliding_window + 1 + max_rollback)
        self.layer = LayerMemory(self.window.new_buffer(batch), FRESH, FRESH, FRESH, FRESH)
        self.streams = self.history.new_buffer(batch)
        self.ids = self.history.new_buffer(batch)

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


def fresh_layers(config: ModelConfig) -> list[LayerMemory]:
    """Layers without memory, for whole sequences."""
    return [FRESH_LAYER] * config.num_hidden_layers
