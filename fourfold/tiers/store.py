"""A model whose routed experts are read from disk when they are needed and are not in RAM."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.model.block import Block
from fourfold.model.experts import Asked, TierStats
from fourfold.model.transformer import Transformer
from fourfold.tiers.cache import ExpertCache
from fourfold.tiers.counts import ExpertCounts
from fourfold.tiers.predict import predicted, predicted_early
from fourfold.tiers.reader import READERS, Bytes, ExpertReader
from fourfold.tiers.slots import SlotPool
from fourfold.tiers.split import OnDevice, SplitLayer
from fourfold.tiers.table import ExpertTable


class TieredExperts:
    """Reads, keeps and evicts the experts of all layers; `stats()` says what it cost.

    One forward at a time uses it: another thread's waits at the next layer.  What `counts` has of this run is
    kept when the model is closed or the process ends.
    """

    def __init__(
        self,
        model: Transformer,
        table: ExpertTable,
        slots: int,
        on_device: OnDevice | None = None,
        counts: ExpertCounts | None = None,
    ) -> None:
        self.table = table
        self.on_device = on_device
        """Where the device has some of them; the others are computed on the host."""
        self.uses = ExpertCounts(table) if counts is None else counts
        shape = len(table.layers), table.per_layer
        self.mine = np.ones(shape, dtype=bool) if on_device is None else ~on_device.held
        """[layers, E]: the experts that come into slots."""
        reader = ExpertReader(table)
        pool = SlotPool(table.parts, slots)

        def fill(expert: int, piece: int, slot: int, buffer: Bytes) -> None:
            reader.read(expert, piece, pool.row(slot), buffer)

        self._reader = reader
        self.cache = ExpertCache(
            slots, len(table.layers), table.per_layer, READERS, reader.pieces, reader.buffer, fill
        )
        self.running = threading.RLock()
        self._counts = dict.fromkeys(("hits", "prefetched", "misses", "device_hits"), 0)
        self._slots = slots
        self.blocks = [
            cast(Block, model.get_submodule(layer.removesuffix(".ffn.experts"))) for layer in table.layers
        ]
        self._put_in(pool)
        # Its threads hold the cache and the pool, not this: with the model they go.
        self._finalizer = weakref.finalize(self, _end, self.cache, reader, self.uses)

    def stats(self) -> TierStats:
        """The counters since the model was loaded."""
        with self.cache.changed:
            return TierStats(
                slots=self._slots,
                experts=self.table.experts,
                on_device=int((~self.mine).sum()),
                **self._counts,
                prefetch_wasted=self.cache.wasted,
                bytes_read=self.cache.queue.bytes_read,
                stall_seconds=self.cache.stalled,
            )

    def close(self) -> None:
        """End the threads and close the files; the model cannot run any more."""
        self._finalizer()

    def count(self, hits: int = 0, prefetched: int = 0, misses: int = 0, device_hits: int = 0) -> None:
        """Add to the counters what a layer found."""
        numbers = hits, prefetched, misses, device_hits
        for name, number in zip(self._counts, numbers, strict=True):
            self._counts[name] += number

    def _put_in(self, pool: SlotPool) -> None:
        stacks = {name: nn.Parameter(stack, requires_grad=False) for name, stack in pool.stacks.items()}
        for number, block in enumerate(self.blocks):
            experts = block.ffn.experts
            layer = _Layer(self, number)
            if self.on_device is not None:
                experts.source = SplitLayer(experts, layer, self.on_device.rows(number), pool.stacks)
                continue
            for name, stack in stacks.items():
                matrix, _, leaf = name.partition(".")
                experts.get_submodule(matrix).register_parameter(leaf, stack)
            experts.source = layer


def _end(cache: ExpertCache, reader: ExpertReader, uses: ExpertCounts) -> None:
    cache.queue.close()
    reader.close()
    uses.save()


class _Layer:
    """The expert source of one layer."""

    def __init__(self, tiers: TieredExperts, number: int) -> None:
        self._tiers = weakref.proxy(tiers)
        self._number = number
        self._first = number * tiers.table.per_layer

    def expect(self, streams: Tensor, ids: Tensor) -> None:
        """Read ahead what is known by token id, of this layer and later ones, or guessed by the gate."""
        tiers, cache = self._tiers, self._tiers.cache
        block = tiers.blocks[self._number]
        with tiers.running:
            if self._number == 0:
                with cache.changed:
                    cache.forget_wishes()
            ahead = self._known(ids)
            if self._guesses(self._number):
                ahead = self._wanted(_likeliest_first(predicted(block, streams))) + ahead
            with cache.changed:
                cache.read_ahead(ahead, self._number, ids.numel())

    def _guesses(self, number: int) -> bool:
        """Whether a guess at what a layer chooses can be of use."""
        tiers, per_layer = self._tiers, self._tiers.cache.per_layer
        if number == len(tiers.blocks) or tiers.blocks[number].ffn.gate.hashed:
            return False
        here = tiers.cache.slot[number * per_layer : (number + 1) * per_layer]
        return bool((here[tiers.mine[number]] < 0).any())

    def _known(self, ids: Tensor) -> list[int]:
        """The experts of this and later layers that are routed by token id."""
        tiers = self._tiers
        found: list[int] = []
        for number in range(self._number, len(tiers.blocks)):
            gate = tiers.blocks[number].ffn.gate
            if gate.hashed:
                found += self._wanted(_distinct(gate.tid2eid[ids.flatten()]), number)
        return found

    def _wanted(self, experts: list[int], layer: int | None = None) -> list[int]:
        """Those of a layer's experts that come into slots, as they are numbered there."""
        layer = self._number if layer is None else layer
        mine = self._tiers.mine[layer]
        return [layer * len(mine) + expert for expert in experts if mine[expert]]

    def chosen(self, asked: Asked) -> Asked:
        """Read what the layer's gate chose and then what the next one's may, and no more of what was guessed
        and not chosen."""
        tiers, cache = self._tiers, self._tiers.cache
        tokens = asked.indices.shape[0]
        with tiers.running:
            with cache.changed:
                counts = np.bincount(asked.indices.flatten().numpy(), minlength=cache.per_layer)
                experts = self._wanted(_distinct(asked.indices))
                tiers.uses.now[self._number] += counts
                cache.policy.used(self._number, counts, tokens)
                cache.forget_wishes(range(self._first + cache.per_layer))
                tiers.count(*cache.claim(experts), int((counts > 0).sum()) - len(experts))
                cache.demand(experts, self._number, tokens)
            self._guess_next(asked)
        return asked

    def _guess_next(self, asked: Asked) -> None:
        tiers, cache = self._tiers, self._tiers.cache
        following = self._number + 1
        # A chunk of many tokens wants nearly all experts: the next layer's would drive out this one's.
        if asked.indices.numel() > cache.per_layer or not self._guesses(following):
            return
        block = tiers.blocks[following]
        # A gate on an accelerator would answer when all is done that was asked of it before.
        if block.ffn.gate.weight.device == asked.x.device:
            guess = self._wanted(_likeliest_first(predicted_early(block, asked.x)), following)
            with cache.changed:
                cache.read_ahead(guess, following, asked.indices.shape[0])

    def passes(self, indices: Tensor) -> Iterator[Tensor]:
        """The chosen experts, part by part as they arrive, in ascending order."""
        tiers, cache = self._tiers, self._tiers.cache
        todo = self._wanted(_distinct(indices))
        with tiers.running:
            with cache.changed:
                # Again: another thread's forward may have been here since `chosen`.
                cache.forget_wishes(range(self._first + cache.per_layer))
                cache.wish(todo)
            while todo:
                with cache.changed:
                    ready = self._wait(todo, indices.shape[0])
                    places = self._places(ready)
                yield places
                with cache.changed:
                    cache.forget_wishes(set(ready))
                todo = todo[len(ready) :]

    def elsewhere(self, others: Asked) -> None:
        """All that this source has comes into the stacks."""

    def _wait(self, todo: list[int], tokens: int) -> list[int]:
        """Those of `todo` that are ready, up to the first that is not; at least one."""
        cache = self._tiers.cache
        cache.demand(todo, self._number, tokens)
        while not cache.wait(todo[0]):
            cache.demand(todo, self._number, tokens)
        count = 1
        while count < len(todo) and cache.ready(todo[count]):
            count += 1
        return todo[:count]

    def _places(self, experts: list[int]) -> Tensor:
        cache = self._tiers.cache
        places = np.full(cache.per_layer, -1, dtype=np.int64)
        places[np.array(experts) - self._first] = cache.slot[experts]
        return torch.from_numpy(places)


def _distinct(indices: Tensor) -> list[int]:
    """[..., K] -> the numbers in it, ascending."""
    numbers: list[int] = np.unique(indices.cpu().numpy()).tolist()
    return numbers


def _likeliest_first(indices: Tensor) -> list[int]:
    """The same in the order of the gate's choice: first choices of all tokens, second ones, …"""
    return list(dict.fromkeys(indices.T.flatten().tolist()))
