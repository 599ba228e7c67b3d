"""The aligned copy: written once, whole or not at all, used again only for what it was made from."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from fourfold.errors import CheckpointError
from fourfold.tiers.copy import copied
from fourfold.tiers.table import PAGE
from tests.tiers.conftest import table_of


def test_it_is_written_once_and_said(tiny_folder, tmp_path, capfd):
    table = copied(table_of(tiny_folder), tmp_path / "new" / "cache")
    assert "copying the experts to" in capfd.readouterr().err
    (file,) = table.files
    before = file.stat()
    assert before.st_size % PAGE == 0 and (table.offset % PAGE == 0).all()
    again = copied(table_of(tiny_folder), tmp_path / "new" / "cache")
    assert again.files == table.files and file.stat().st_mtime_ns == before.st_mtime_ns
    assert capfd.readouterr().err == ""
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_a_damaged_copy_is_written_anew(tiny_folder, tmp_path):
    (file,) = copied(table_of(tiny_folder), tmp_path).files
    whole = file.read_bytes()
    for damage in (whole[:-1], b"{" + whole[:-1]):
        file.write_bytes(damage)
        copied(table_of(tiny_folder), tmp_path)
        assert file.read_bytes() == whole


def test_another_checkpoint_has_another_copy(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    shard = next(folder.glob("*.safetensors"))
    first = copied(table_of(folder), tmp_path)
    os.utime(shard, ns=(1, 1))
    second = copied(table_of(folder), tmp_path)
    assert first.files != second.files


def test_too_little_room_is_told_before_anything_is_written(tiny_folder, tmp_path, monkeypatch):
    full = os.statvfs_result((4096, 4096, 10, 1, 1, 1, 1, 1, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(CheckpointError, match=r"takes .* KiB, the disk has 4\.0 KiB free. Make room"):
        copied(table_of(tiny_folder), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, "the disk has 0 B free"), (errno.EIO, "cannot be written")]
)
def test_a_disk_that_fails_meanwhile_leaves_nothing(tiny_folder, tmp_path, monkeypatch, code, message):
    def fail(_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(CheckpointError, match=message):
            copied(table_of(tiny_folder), tmp_path)
    assert list(tmp_path.iterdir()) == []
    copied(table_of(tiny_folder), tmp_path)


def test_a_folder_that_is_none(tiny_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written to"):
        copied(table_of(tiny_folder), tmp_path / "file")
