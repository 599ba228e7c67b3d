"""Records of every kind of source, and samples kept on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from fourfold.errors import TrainError
from fourfold.train.config import FileSection
from fourfold.train.corpus import Encoder, read_samples
from fourfold.train.data import PackedData
from fourfold.train.sources import read_records
from fourfold.train.store import Stored, store_samples

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c"}]


def records(path: Path | str, **options: Any) -> list[dict[str, Any]]:
    return list(read_records(FileSection(path=str(path), **options)))


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


def test_parquet_rows_are_records(tmp_path: Path) -> None:
    """Cells that a table leaves empty are keys that a record does not have; other columns are not read."""
    path = tmp_path / "c.parquet"
    rows: list[dict[str, Any]] = [
        {"text": "x", "url": "u"},
        {"prompt": "p", "response": "r"},
        {"messages": TALK},
    ]
    columns = ("text", "prompt", "response", "messages", "url")
    write_parquet(path, [{name: row.get(name) for name in columns} for row in rows])
    assert records(path) == [{"text": "x"}, *rows[1:]]


def test_text_blocks(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("one\nline two\n\n\nthree\n\n \n", encoding="utf-8")
    assert records(path) == [{"text": "one\nline two"}, {"text": "three"}]


def test_dataset_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    write_parquet(folder / "train.parquet", [{"text": "x"}, {"text": "y"}, {"text": "z"}])
    assert records(f"hf:{folder}") == [{"text": "x"}, {"text": "y"}, {"text": "z"}]
    with pytest.raises(TrainError, match="split 'absent'"):
        records(f"hf:{folder}", split="absent")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    write_parquet(path, [{"text": "good"}, {"text": ""}])
    with pytest.raises(TrainError, match=r"c\.parquet, row 2: needs"):
        records(path)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(TrainError, match="not a Parquet file"):
        records(path)
    (tmp_path / "c.csv").touch()
    with pytest.raises(TrainError, match=r"data files are .*parquet"):
        records(tmp_path / "c.csv")
    with pytest.raises(TrainError, match="no such data file"):
        records(tmp_path / "absent.jsonl")


@pytest.fixture
def stored(tmp_path: Path, tokenizer_file: Path, corpus_file: Path) -> Stored:
    sections = (
        FileSection(path=str(corpus_file), weight=2.0, kinds=("story",)),
        FileSection(path=str(corpus_file)),
    )
    return store_samples(Encoder(tokenizer_file), sections, tmp_path / "store")


def test_store_has_what_reading_gives(stored: Stored, tokenizer_file: Path, corpus_file: Path) -> None:
    """Samples, weights, and the batches that are made of them."""
    sections = (
        FileSection(path=str(corpus_file), weight=2.0, kinds=("story",)),
        FileSection(path=str(corpus_file)),
    )
    read = read_samples(Encoder(tokenizer_file), sections)
    assert len(read) == len(stored) == len(stored.lengths)
    for one, other in zip(read, stored, strict=True):
        assert np.array_equal(one.ids, other.ids) and np.array_equal(one.answer, other.answer)
        assert one.weight == other.weight
    options: dict[str, Any] = {"length": 64, "batch_size": 3, "answers_only": True, "pad": 2, "seed": 1}
    assert torch.equal(
        PackedData(read, **options).next().targets, PackedData(stored, **options).next().targets
    )


def test_store_is_written_once(tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "x"}\n', encoding="utf-8")
    encoder, sections = Encoder(tokenizer_file), (FileSection(path=str(path)),)
    first = store_samples(encoder, sections, tmp_path / "store").fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr("fourfold.train.store.read_records", None)
        assert store_samples(encoder, sections, tmp_path / "store").fingerprint() == first
    path.write_text('{"text": "other"}\n', encoding="utf-8")
    assert store_samples(encoder, sections, tmp_path / "store").fingerprint() != first


def test_a_bad_record_leaves_no_store(tmp_path: Path, tokenizer_file: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "x"}\n{"text": 3}\n', encoding="utf-8")
    for _ in range(2):
        with pytest.raises(TrainError, match="line 2"):
            store_samples(Encoder(tokenizer_file), (FileSection(path=str(path)),), tmp_path / "store")


def test_split_keeps_equal_samples_on_one_side(tmp_path: Path, tokenizer_file: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"text": str(n % 10)}) + "\n" for n in range(40)), encoding="utf-8")
    samples = store_samples(
        Encoder(tokenizer_file), (FileSection(path=str(path), weight=2.0),), tmp_path / "store"
    )
    kept, aside = samples.split(0.2, seed=3)
    assert aside is not None and len(aside) == 8 and len(kept) == 32
    assert not {s.ids.tobytes() for s in kept} & {s.ids.tobytes() for s in aside}
    assert {s.weight for s in aside} == {1.0} and {s.weight for s in kept} == {2.0}
    assert kept.fingerprint() != samples.fingerprint()
