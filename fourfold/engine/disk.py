"""The prefix cache on disk: what is kept in memory is written behind, and read when memory has it no more.

Blocks and states are copied out of the cache between two steps, which takes as long as copying them in
memory; hashing, writing and waiting for the disk are a thread's of its own.  A prefix is read by another
thread, ahead of the request that begins with it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fourfold.engine.disk_folder import REQUESTS, CacheFolder
from fourfold.engine.disk_format import Address, Addresses, Spec, scoped
from fourfold.engine.fingerprint import cache_facts, cache_key
from fourfold.engine.log import RequestLog
from fourfold.engine.radix import TokenIds
from fourfold.errors import ConfigError
from fourfold.model.paged import PagedCache, Saved
from fourfold.model.paged_shape import Stream
from fourfold.model.transformer import Transformer
from fourfold.tiers.files import say
from fourfold.tiers.memory import written

_WAITING = 256 << 20
"""Bytes that may wait to be written, besides one state; what comes when there are more is not written."""
_HEADS = 1 << 16
"""Room for what files hold besides tensors."""


class DiskCache:
    """Beginnings of sequences of one model in a folder of `size` bytes, which other processes may use, too.

    ConfigError: the folder cannot be used, or does not hold one state.
    """

    def __init__(self, model: Transformer, root: Path, size: int) -> None:
        self._shape = shape = model.cache_shape
        least = shape.slot_bytes + 2 * shape.block_bytes + _HEADS
        if size < least:
            raise ConfigError(
                f"cache_size is {written(size)}; allowed: {written(least)} and more, for a state and a block "
                "of this model"
            )
        facts = cache_facts(model)
        self.key = cache_key(facts)
        self._folder = CacheFolder(root, self.key, facts, size)
        self.log = RequestLog(self._folder.path / REQUESTS)
        self._digests: WeakKeyDictionary[TokenIds, list[bytes]] = WeakKeyDictionary()
        self._slot_specs = _specs(shape.slots.values())
        self._block_specs = _specs(shape.blocks.values())
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="fourfold-cache-writer")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="fourfold-cache-reader")
        self._lock = threading.Lock()
        self._pending: set[str] = set()
        """Names of files that wait to be written."""
        self._waiting = 0
        self._writes = True

    def longest(self, tokens: TokenIds, limit: int) -> int:
        """How many of the first `limit` tokens need not be computed, as far as the names of files tell."""
        return self._folder.longest(self._addresses(tokens), limit, self._shape.block_tokens)

    def load(self, tokens: TokenIds, position: int) -> Future[Saved | None]:
        """The state after `position` tokens and all blocks up to there; None where a file is not as it
        should be."""
        addresses = self._addresses(tokens)
        blocks = [addresses.block(i) for i in range(position // self._shape.block_tokens)]
        partial = position % self._shape.block_tokens > 0
        return self._reader.submit(self._read, addresses.state(position), blocks, partial)

    def keep(
        self, tokens: TokenIds, position: int, cache: PagedCache, slot: int, blocks: Sequence[int]
    ) -> None:
        """Write the state in `slot` after `position` tokens, and the blocks up to there, where they are not
        on disk yet; those that are count as used now."""
        addresses, whole = self._addresses(tokens), position // self._shape.block_tokens
        state = addresses.state(position)
        names = [addresses.block_name(i) for i in range(whole)]
        with self._lock:
            missing = [i for i in range(whole) if not self._has(names[i])]
            fresh = not self._has(state.name)
            partial = list(blocks[whole:]) if fresh else []
            copied = [*(blocks[i] for i in missing), *partial]
            size = fresh * self._shape.slot_bytes + len(copied) * self._shape.block_bytes
            if not self._writes or (self._waiting and self._waiting + size > _WAITING):
                return
            self._waiting += size
            self._pending |= {state.name, *names}
        files: list[tuple[Address, list[Tensor]]] = []
        if fresh or missing:
            saved = cache.save(slot, copied)
            rows = list(saved.blocks.values())
            files = [(addresses.block(i), [r[:, n] for r in rows]) for n, i in enumerate(missing)]
            if fresh:
                files.append((state, [*saved.slot.values(), *(r[:, -1] for r in rows if partial)]))
        # In the order in which eviction may take them: no block before the states that need it.
        self._writer.submit(self._write, files, [state.name, *reversed(names)], size)

    def close(self) -> None:
        """Write what waits, and end the threads."""
        self.log.close()
        self._reader.shutdown(cancel_futures=True)
        self._writer.shutdown()

    def _addresses(self, tokens: TokenIds) -> Addresses:
        return Addresses(tokens, self._digests.setdefault(tokens, [scoped(self.key, tokens.scope)]))

    def _has(self, name: str) -> bool:
        return name in self._pending or name in self._folder

    # On the threads.

    def _write(self, files: list[tuple[Address, list[Tensor]]], used: list[str], size: int) -> None:
        try:
            if self._writes:
                for address, tensors in files:
                    self._folder.write(address, tensors)
                self._folder.touch(used)
        except OSError as error:
            self._writes = False
            say(
                f"{self._folder.path} cannot be written to ({error.strerror}): what is in it is used, and "
                "nothing is added any more"
            )
        finally:
            with self._lock:
                self._waiting -= size
                self._pending.difference_update(used)

    def _read(self, state: Address, blocks: list[Address], partial: bool) -> Saved | None:
        last = self._block_specs if partial else []
        found = self._folder.read(state, [*self._slot_specs, *last])
        if found is None:
            return None
        count = len(blocks) + partial
        pool = [
            torch.empty(layers, count, *rest, dtype=dtype) for (layers, *rest), dtype in self._block_specs
        ]
        for rows, tensor in zip(pool, found[len(self._slot_specs) :], strict=partial):
            rows[:, -1] = tensor
        for number, address in enumerate(blocks):
            pieces = self._folder.read(address, self._block_specs)
            if pieces is None:
                return None
            for rows, piece in zip(pool, pieces, strict=True):
                rows[:, number] = piece
        self._folder.touch([state.name, *(address.name for address in reversed(blocks))])
        return Saved(
            dict(zip(self._shape.slots, found, strict=False)),
            dict(zip(self._shape.blocks, pool, strict=True)),
        )


def _specs(streams: Iterable[Stream]) -> list[Spec]:
    return [((len(stream.layers), stream.rows, stream.width), stream.dtype) for stream in streams]
