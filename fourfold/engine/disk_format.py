"""Files of the cache on disk: their names, which the tokens determine, and their bytes.

    block   <digest>.block                   entries and index keys of 128 tokens
    state   <digest>-<count>-<digest>.state  a snapshot's slot, and the entries of the `count` tokens that
                                             follow its last whole block
    bytes   "fourfold", digest before, count u32, token ids i32[count], the payload, sha256 of all that

A digest stands for all tokens up to there: it is made of the one before and of what follows.  The first is
the key of the cache, so that nothing of another model has a name that is ever asked for.  SHA-256, because
processors have instructions for it: 1.6 GiB/s where CRC-32 makes 4.4 and BLAKE2b 0.8, and its collisions need
no thought.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fourfold.engine.radix import TokenIds

DIGEST_BYTES = 16
ID_BYTES = 4
_MAGIC = b"fourfold"
_HASH_BYTES = 32
_BLOCK = re.compile(r"[0-9a-f]{32}\.block")
_STATE = re.compile(r"([0-9a-f]{32})-(\d{1,6})-[0-9a-f]{32}\.state")


Spec = tuple[tuple[int, ...], torch.dtype]
"""Shape and type of a tensor."""


class Damaged(Exception):
    """A file does not hold what its name says."""


@dataclass(frozen=True)
class Address:
    """A block's or a state's file.  head: the first bytes that it must have."""

    name: str
    head: bytes


class Addresses:
    """Where the blocks and states of one sequence belong.

    digests: of its first whole blocks, the key of the cache before them; kept and added to.
    """

    def __init__(self, tokens: TokenIds, digests: list[bytes]) -> None:
        self._tokens = tokens
        self._digests = digests

    def digest(self, blocks: int) -> bytes:
        """Of the first so many whole blocks."""
        while len(self._digests) <= blocks:
            key = self._tokens.key(len(self._digests) - 1)
            self._digests.append(_digest(self._digests[-1], key))
        return self._digests[blocks]

    def block_name(self, number: int) -> str:
        """The file of the block of this number, which is whole."""
        return f"{self.digest(number + 1).hex()}.block"

    def block(self, number: int) -> Address:
        return Address(self.block_name(number), _head(self.digest(number), self._tokens.key(number)))

    def state(self, position: int) -> Address:
        """The state after `position` tokens."""
        whole = position // self._tokens.block_tokens
        tail = self._tokens.piece(whole * self._tokens.block_tokens, position)
        before = self.digest(whole)
        name = f"{before.hex()}-{len(tail) // ID_BYTES}-{_digest(before, tail).hex()}.state"
        return Address(name, _head(before, tail))


def is_block(name: str) -> bool:
    """Whether a file of this name is a block."""
    return _BLOCK.fullmatch(name) is not None


def state_place(name: str) -> tuple[bytes, int] | None:
    """The digest of a state's whole blocks and the number of tokens that follow; None: it is no state."""
    match = _STATE.fullmatch(name)
    return None if match is None else (bytes.fromhex(match[1]), int(match[2]))


def file_bytes(head: bytes, tensors: Iterable[Tensor]) -> list[memoryview]:
    """What a file consists of, in order.  tensors: on the host, of any type."""
    parts = [memoryview(head), *map(_bytes_of, tensors)]
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return [*parts, memoryview(found.digest())]


def write_whole(path: Path, parts: Sequence[memoryview]) -> None:
    """A new file that is on the disk when this returns.  OSError: it could not be."""
    with path.open("xb", buffering=0) as file:
        for part in parts:
            done = 0
            while done < len(part):
                done += file.write(part[done:])
        os.fsync(file.fileno())


def read_whole(path: Path, address: Address, specs: Sequence[Spec]) -> list[Tensor]:
    """The tensors of a file, of these shapes and types, on the host.

    Damaged: the file holds something else, or less.  OSError: it cannot be read.
    """
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in specs]
    head = address.head
    size = len(head) + sum(sizes) + _HASH_BYTES
    data = bytearray(size)
    with path.open("rb", buffering=0) as file:
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise Damaged(f"has {found:,} bytes where {size:,} belong")
        done = 0
        while done < size and (count := file.readinto(memoryview(data)[done:])):
            done += count
    if hashlib.sha256(memoryview(data)[:-_HASH_BYTES]).digest() != data[-_HASH_BYTES:]:
        raise Damaged("its checksum is wrong")
    if data[: len(head)] != head:
        raise Damaged("it was written for other tokens or another model")
    flat = torch.frombuffer(data, dtype=torch.uint8)[len(head) : -_HASH_BYTES].clone()
    return [
        piece.view(dtype).view(shape) for piece, (shape, dtype) in zip(flat.split(sizes), specs, strict=True)
    ]


def _head(before: bytes, ids: bytes) -> bytes:
    return _MAGIC + before + (len(ids) // ID_BYTES).to_bytes(4, "little") + ids


def scoped(key: bytes, scope: str) -> bytes:
    """The key of a cache for the sequences of one scope."""
    return _digest(key, scope.encode()) if scope else key


def _digest(before: bytes, ids: bytes) -> bytes:
    return hashlib.sha256(before + ids).digest()[:DIGEST_BYTES]


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data
