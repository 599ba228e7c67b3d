"""A folder of cache files that several processes may share: what is there, publishing, evicting.

    <cache_dir>/<key>/   files of one key; about.json, which says what the key stands for; requests/, the logs

Files come into being under another name and are renamed when they are whole and on the disk, so a name that
is listed is a file that is complete, whoever was killed when.  Its time is that of its last use; the files of
all keys together stay within the size, and those that were not used for the longest time go.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from fourfold.engine.disk_format import (
    Address,
    Addresses,
    Damaged,
    Spec,
    file_bytes,
    is_block,
    read_whole,
    state_place,
    write_whole,
)
from fourfold.errors import ConfigError
from fourfold.tiers.files import say

_ABOUT = "about.json"
REQUESTS = "requests"
_UNFINISHED = ".unfinished"
_ABANDONED = 600.0
"""Seconds after which an unfinished file has lost its writer: writing one takes milliseconds."""
_STALE = 1.0
"""Seconds that the list of names may lag behind what other processes do."""
_SLACK = 16
"""Eviction makes a 16th of the size free, so that the folder is looked through once in a while only."""


class CacheFolder:
    """The files of `key` in `root`, which are within `size` bytes together with those of other keys.

    Any thread may use it.  ConfigError: there is no such folder, and it cannot be made.
    """

    def __init__(self, root: Path, key: bytes, facts: dict[str, str], size: int) -> None:
        self.root, self.key, self.size = root, key, size
        self.path = root / key.hex()
        self._lock = threading.Lock()
        self._names: set[str] = set()
        """Files of blocks and states that are there."""
        self._states: dict[bytes, set[tuple[int, str]]] = {}
        """By the digest of their whole blocks: how many tokens follow, and the name."""
        self._broken: set[str] = set()
        self._foreign: set[str] = set()
        self._changed = 0
        """The folder's time when it was last read."""
        self._looked = 0.0
        self._room = 0
        """Bytes that may be written before the folder's size is looked at again."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._list()
            if not (self.path / _ABOUT).exists():
                self._publish(_ABOUT, [memoryview(json.dumps(facts, indent=1).encode())])
        except OSError as error:
            raise ConfigError(
                f"cache_dir is {str(root)!r}, which cannot be used ({error.strerror}); allowed: a folder "
                "that can be written to"
            ) from None

    def longest(self, addresses: Addresses, limit: int, block_tokens: int) -> int:
        """How many tokens the longest state has seen that is of these, at most `limit`; 0: there is none."""
        with self._lock:
            self._refresh()
            reach = 0
            while (reach + 1) * block_tokens <= limit and addresses.block_name(reach) in self._names:
                reach += 1
            for depth in range(reach, -1, -1):
                for count, name in sorted(self._states.get(addresses.digest(depth), ()), reverse=True):
                    position = depth * block_tokens + count
                    if position <= limit and addresses.state(position).name == name:
                        return position
        return 0

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def write(self, address: Address, tensors: Iterable[Tensor]) -> None:
        """Publish a file; what was under its name is replaced.  OSError: it cannot be written."""
        parts = file_bytes(address.head, tensors)
        self._make_room(sum(map(len, parts)))
        before = self._time()
        self._publish(address.name, parts)
        with self._lock:
            self._broken.discard(address.name)
            self._note(address.name)
            if before == self._changed:  # by nobody else meanwhile, or that is seen a little later
                self._changed = self._time()

    def read(self, address: Address, specs: Sequence[Spec]) -> list[Tensor] | None:
        """A file's tensors; None where it is gone or damaged, and then it is not there any more."""
        if address.name in self._broken:
            return None
        try:
            return read_whole(self.path / address.name, address, specs)
        except FileNotFoundError:
            self._forget(address.name)  # another process evicted it
        except (OSError, Damaged) as error:
            self._broken.add(address.name)
            self._forget(address.name)
            reason = error.strerror if isinstance(error, OSError) else error
            say(f"{self.path / address.name}: {reason}; the cache goes on without it")
        return None

    def touch(self, names: Sequence[str]) -> None:
        """These files are used now, the first of them the longest ago."""
        now = time.time_ns() - len(names)
        for number, name in enumerate(names):
            try:
                os.utime(self.path / name, ns=(now + number, now + number))
            except FileNotFoundError:
                self._forget(name)
            except OSError:
                return  # a folder that can only be read: it evicts nothing, either

    def _publish(self, name: str, parts: Sequence[memoryview]) -> None:
        unfinished = self.path / f"{secrets.token_hex(8)}{_UNFINISHED}"
        try:
            write_whole(unfinished, parts)
            os.replace(unfinished, self.path / name)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink()
            raise

    def _make_room(self, needed: int) -> None:
        """Evict until a file of so many bytes fits."""
        if self._room < needed:
            self.path.mkdir(parents=True, exist_ok=True)  # somebody may have removed it
            files = sorted(self._files())
            held = sum(size for _, size, _ in files)
            spare = max(needed, self.size // _SLACK)
            for _, size, path in files:
                if held <= self.size - spare:
                    break
                if path.suffix != _UNFINISHED:
                    with suppress(OSError):
                        path.unlink()
                        held -= size
            # No more, whatever is free: other processes write, too.
            self._room = spare
        self._room -= needed

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """Time, size and path of all cache files, of any key; unfinished ones that were left behind go."""
        for folder in os.scandir(self.root):
            if len(folder.name) != 2 * len(self.key) or not folder.is_dir():
                continue
            for path in Path(folder).iterdir():
                unfinished = path.suffix == _UNFINISHED
                if unfinished or is_block(path.name) or state_place(path.name):
                    with suppress(FileNotFoundError):
                        status = path.stat()
                        if unfinished and time.time() - status.st_mtime > _ABANDONED:
                            path.unlink()
                        else:
                            yield status.st_mtime_ns, status.st_size, path

    def _refresh(self) -> None:
        """See what other processes have done, if that may be something new."""
        now = time.monotonic()
        if now - self._looked >= _STALE:
            self._looked = now
            if self._time() != self._changed:
                self._list()

    def _list(self) -> None:
        self._changed = self._time()
        found = set(os.listdir(self.path)) if self._changed else set()
        for name in self._names - found:
            self._drop(name)
        for name in found - self._names - self._broken:
            self._note(name)

    def _time(self) -> int:
        """When something was last added to the folder or taken from it; 0: it is gone."""
        try:
            return os.stat(self.path).st_mtime_ns
        except OSError:
            return 0

    def _note(self, name: str) -> None:
        """A file that is there."""
        if (place := state_place(name)) is not None:
            before, count = place
            self._states.setdefault(before, set()).add((count, name))
            self._names.add(name)
        elif is_block(name):
            self._names.add(name)
        elif not (name in (_ABOUT, REQUESTS) or name.endswith(_UNFINISHED) or name in self._foreign):
            self._foreign.add(name)
            say(f"{self.path / name} is no file of the cache and is left alone")

    def _forget(self, name: str) -> None:
        with self._lock:
            self._drop(name)

    def _drop(self, name: str) -> None:
        if name not in self._names:
            return
        self._names.remove(name)
        if (place := state_place(name)) is not None:
            before, count = place
            self._states[before].discard((count, name))
            if not self._states[before]:
                del self._states[before]
