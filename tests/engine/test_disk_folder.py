"""A cache folder: what is published is whole, what is not is not used, and the size is kept."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fourfold.engine import disk_folder
from fourfold.engine.disk_folder import CacheFolder
from fourfold.engine.disk_format import Address, Addresses
from fourfold.engine.radix import TokenIds
from fourfold.errors import ConfigError

KEY = bytes(range(16))
SIZE = 4
ROWS = [((2, 3), torch.float32), ((5,), torch.bfloat16)]


def folder(root: Path, size: int = 1 << 20, key: bytes = KEY) -> CacheFolder:
    return CacheFolder(root, key, {"model": "none"}, size)


def addresses(*ids: int, key: bytes = KEY) -> Addresses:
    return Addresses(TokenIds(ids, SIZE), [key])


def tensors(value: float) -> list[Tensor]:
    return [torch.full(shape, value, dtype=dtype) for shape, dtype in ROWS]


def fill(own: CacheFolder, ids: list[int], position: int) -> list[Address]:
    """The blocks and the state of a sequence, written."""
    places = addresses(*ids)
    files = [*(places.block(i) for i in range(position // SIZE)), places.state(position)]
    for number, address in enumerate(files):
        own.write(address, tensors(number))
    return files


def test_what_was_written_is_read_again_by_another_process_object(tmp_path):
    files = fill(folder(tmp_path), list(range(10)), 9)
    own = folder(tmp_path)
    assert all(address.name in own for address in files)
    for number, address in enumerate(files):
        found = own.read(address, ROWS)
        assert found is not None
        assert all(torch.equal(a, b) for a, b in zip(found, tensors(number), strict=True))


@pytest.mark.parametrize(
    ("ids", "limit", "expected"),
    [
        (range(20), 19, 9),
        (range(20), 8, 6),
        (range(20), 5, 2),
        ([0, 1, 2, 3, 4, 5, 6, 99], 7, 6),
        ([0, 1, 2, 3, 4, 99, 6, 7], 7, 2),
        ([0, 1, 2, 99], 3, 2),
        ([99, 1, 2, 3], 3, 0),
    ],
)
def test_the_longest_state_of_a_sequence_is_found_by_names_alone(tmp_path, ids, limit, expected):
    own = folder(tmp_path)
    for position in (2, 6, 9):
        fill(own, list(range(10)), position)
    for path in own.path.iterdir():
        os.truncate(path, 0)
    assert folder(tmp_path).longest(addresses(*ids), limit, SIZE) == expected


def test_a_state_whose_blocks_were_evicted_is_not_found(tmp_path):
    own = folder(tmp_path)
    files = fill(own, list(range(10)), 9)
    fill(own, list(range(10)), 2)
    (own.path / files[0].name).unlink()
    assert folder(tmp_path).longest(addresses(*range(10)), 9, SIZE) == 2
    assert own.read(files[0], ROWS) is None
    assert own.longest(addresses(*range(10)), 9, SIZE) == 2


def test_another_models_files_are_never_found_and_never_used(tmp_path, capsys):
    other = bytes(16)
    place = addresses(1, 2, key=other).state(2)
    stranger = folder(tmp_path, key=other)
    stranger.write(place, tensors(1.0))
    own = folder(tmp_path)
    assert own.longest(addresses(1, 2), 2, SIZE) == 0
    mine = addresses(1, 2).state(2)
    (own.path / mine.name).write_bytes((stranger.path / place.name).read_bytes())
    assert own.read(mine, ROWS) is None
    assert f"{mine.name}: it was written for other tokens or another model" in capsys.readouterr().err


DAMAGE = {
    "a bit": lambda data: data[:80] + bytes([data[80] ^ 4]) + data[81:],
    "a token": lambda data: data[:29] + bytes([data[29] ^ 1]) + data[30:],
    "the end": lambda data: data[:-1],
    "all": lambda data: b"",
    "more": lambda data: data + b"x",
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_never_used_and_written_anew(tmp_path, capsys, damage):
    own = folder(tmp_path)
    (state,) = fill(own, [1, 2, 3], 2)
    path = own.path / state.name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    again = folder(tmp_path)
    assert again.longest(addresses(1, 2, 3), 2, SIZE) == 2
    assert again.read(state, ROWS) is None
    assert str(path) in capsys.readouterr().err
    assert again.longest(addresses(1, 2, 3), 2, SIZE) == 0
    fill(again, [1, 2, 3], 2)
    assert again.longest(addresses(1, 2, 3), 2, SIZE) == 2
    assert again.read(state, ROWS) is not None


def test_foreign_files_are_named_and_left_alone(tmp_path, capsys):
    own = folder(tmp_path)
    path = own.path / "notes.txt"
    path.write_text("mine")
    folder(tmp_path)
    assert f"{path} is no file of the cache" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_the_least_recently_used_goes_and_the_size_is_kept(tmp_path):
    size = 200 * 40
    own = folder(tmp_path, size)
    first = fill(own, [1, 2, 3], 2)[0]
    for number in range(4, 200):
        fill(own, [number, 1, 2], 2)
        own.touch([first.name])
        held = sum(path.stat().st_size for path in own.path.glob("*.state"))
        assert held <= size
    assert held > size * 3 // 4
    assert own.read(first, ROWS) is not None
    again = folder(tmp_path, size)
    kept = [n for n in range(4, 200) if again.longest(addresses(n, 1, 2), 2, SIZE)]
    assert kept == list(range(kept[0], 200))


def test_the_size_is_that_of_all_models_together(tmp_path):
    size = 200 * 40
    for number in range(3):
        own = folder(tmp_path, size, key=bytes([number]) * 16)
        for first in range(30):
            own.write(addresses(first, 1, key=own.key).state(2), tensors(1.0))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.state")) <= size


def test_what_another_writes_is_seen(tmp_path, monkeypatch):
    own, other = folder(tmp_path), folder(tmp_path)
    fill(other, [1, 2, 3], 2)
    monkeypatch.setattr(disk_folder, "_STALE", 0.0)
    assert own.longest(addresses(1, 2, 3), 3, SIZE) == 2


def test_a_folder_that_is_removed_while_in_use_comes_back(tmp_path):
    own = folder(tmp_path, 200 * 8)
    (state,) = fill(own, [1, 2], 2)
    for path in own.path.iterdir():
        path.unlink()
    own.path.rmdir()
    assert own.read(state, ROWS) is None
    for number in range(8):
        fill(own, [number, 2], 2)
    assert own.longest(addresses(7, 2), 2, SIZE) == 2


def test_unfinished_files_are_ignored_and_go_when_nobody_writes_them_any_more(tmp_path):
    own = folder(tmp_path)
    for name, age in (("new.unfinished", 0), ("old.unfinished", 700)):
        path = own.path / name
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    fill(own, [1, 2], 2)
    assert (own.path / "new.unfinished").exists()
    assert not (own.path / "old.unfinished").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cache_dir is .*file.*Not a directory"):
        folder(tmp_path / "file")


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from tests.engine.test_disk_folder import addresses, fill, folder

root, seed = Path(sys.argv[1]), random.Random(1)
hear, tell = os.pipe()
for child in range(12):
    number = os.fork()
    if number == 0:
        own = folder(root, 100_000)
        seed.seed(child)
        while True:
            fill(own, [seed.randrange(9) for _ in range(20)], 18)
            os.write(tell, b".")
    for _ in range(seed.randrange(1, 4)):
        os.read(hear, 1)
    time.sleep(seed.uniform(0, 0.005))
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
"""


def test_killed_at_any_moment_of_writing_every_file_that_is_there_is_whole(tmp_path):
    """Two writers at once, each of them killed and begun anew twelve times."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    names = [path for path in (tmp_path / KEY.hex()).iterdir() if path.suffix in (".block", ".state")]
    assert len(names) > 10
    own = folder(tmp_path)
    for path in names:
        data = path.read_bytes()
        # A file's head is what its first bytes say: the checksum decides here.
        assert own.read(Address(path.name, data[: len(data) - 32 - 34]), ROWS) is not None
