"""Files that must stay what they were: reads past the page cache, and faults."""

from __future__ import annotations

import errno
import os

import pytest

from fourfold.errors import CheckpointError
from fourfold.tiers.files import WatchedFile
from fourfold.tiers.reader import aligned_bytes
from fourfold.tiers.table import PAGE

CONTENT = bytes(range(256)) * 40  # two and a half pages


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(CONTENT)
    return file


def read(file, offset, needed):
    page = aligned_bytes(3 * PAGE)
    file.read([page.data], offset, needed)
    return page[:needed].tobytes()


def restore(path, status):
    path.write_bytes(CONTENT)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_reads_scatter_and_may_end_inside_a_page(path):
    file = WatchedFile(path)
    first, second = aligned_bytes(PAGE), aligned_bytes(2 * PAGE)
    file.read([first.data, second.data], 0, len(CONTENT))
    assert (first.tobytes() + second.tobytes())[: len(CONTENT)] == CONTENT
    assert read(file, PAGE, 100) == CONTENT[PAGE : PAGE + 100]


def test_where_direct_reads_are_refused_the_page_cache_serves(path, monkeypatch):
    real = os.open

    def refuse(name, flags, *rest):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(name, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    file = WatchedFile(path)
    assert not file.direct
    assert read(file, 0, len(CONTENT)) == CONTENT


def test_a_truncated_file_is_told_and_works_when_it_is_back(path):
    file, status = WatchedFile(path), path.stat()
    with path.open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(CheckpointError, match=r"changed while it was in use \(10,240 bytes .* 100 bytes now"):
        read(file, 0, 200)
    restore(path, status)
    assert read(file, 0, 200) == CONTENT[:200]


def test_a_file_written_anew_is_another_file(path):
    file, status = WatchedFile(path), path.stat()
    path.write_bytes(CONTENT)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(CheckpointError, match="Put the old file back with its time"):
        read(file, 0, 200)


def test_a_file_that_was_replaced_or_removed_is_read_on(path, tmp_path):
    """The one that is open has not changed."""
    file = WatchedFile(path)
    other = tmp_path / "other"
    other.write_bytes(b"x" * len(CONTENT))
    other.rename(path)
    assert read(file, 0, 200) == CONTENT[:200]
    path.unlink()
    assert read(file, 0, 200) == CONTENT[:200]


def test_an_input_error_is_told_and_the_next_read_tries_again(path, monkeypatch):
    file = WatchedFile(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", fail)
        with pytest.raises(CheckpointError, match=r"cannot be read \(Input/output error\)"):
            read(file, 0, 200)
    assert read(file, 0, 200) == CONTENT[:200]


def fail(*_):
    raise OSError(errno.EIO, "Input/output error")


def test_a_file_that_shrinks_during_a_read(path, monkeypatch):
    file = WatchedFile(path)
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        read(file, 0, 200)


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be read \(No such file"):
        WatchedFile(tmp_path / "nothing")
