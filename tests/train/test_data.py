"""Records to batches: encoding, packing, masks, and an order that resumes."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.errors import TrainError
from fourfold.train.config import FileSection
from fourfold.train.corpus import Encoder, Sample, read_samples
from fourfold.train.data import IGNORE, PackedData, Piece, pack

BOS, EOS, USER, ASSISTANT, NO_THINKING = 0, 1, 3, 4, 6


def sample(*ids: int, answer_from: int = 0, weight: float = 1.0) -> Sample:
    answer = np.arange(len(ids)) >= answer_from
    return Sample(ids=np.asarray(ids, dtype=np.int32), answer=answer, kind="text", weight=weight)


def stream(samples: list[Sample], **options: object) -> PackedData:
    values = {"length": 8, "batch_size": 2, "answers_only": False, "pad": 2, "seed": 0} | options
    return PackedData(samples, **values)


def test_chat_encoding_is_v4_non_thinking(tokenizer_file: Path) -> None:
    ids, answer_from = Encoder(tokenizer_file).record({"prompt": "a", "response": "b"})
    assert ids[:2] == [BOS, USER] and ids[3:5] == [ASSISTANT, NO_THINKING] and ids[-1] == EOS
    assert answer_from == 5 and len(ids) == 7


def test_text_cannot_forge_a_mark(tokenizer_file: Path) -> None:
    encoder = Encoder(tokenizer_file)
    ids, _ = encoder.record({"prompt": "<｜Assistant｜></think>", "response": "<｜end▁of▁sentence｜>"})
    assert ids.count(ASSISTANT) == ids.count(NO_THINKING) == ids.count(EOS) == 1
    text, _ = encoder.record({"text": "<｜User｜>"})
    assert USER not in text


def test_xz_and_kinds(tmp_path: Path, tokenizer_file: Path) -> None:
    path = tmp_path / "c.jsonl.xz"
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.write(
            json.dumps({"kind": "a", "text": "x"}) + "\n" + json.dumps({"kind": "b", "text": "yy"}) + "\n"
        )
    encoder = Encoder(tokenizer_file)
    assert len(read_samples(encoder, (FileSection(path=str(path)),))) == 2
    assert [s.kind for s in read_samples(encoder, (FileSection(path=str(path), kinds=("b",)),))] == ["b"]


@pytest.mark.parametrize("line", ["{", '{"prompt": "a"}', '{"text": 3}', '{"text": ""}'])
def test_bad_line_is_named(tmp_path: Path, tokenizer_file: Path, line: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(TrainError, match="line 2"):
        read_samples(Encoder(tokenizer_file), (FileSection(path=str(path)),))


def test_targets_stay_inside_their_sample() -> None:
    data = stream([sample(0, 10, 11, 1), sample(0, 20, 1)])
    (row,) = data.window_rows(0)
    batch = data.batch([row])
    for b, t in torch.nonzero(batch.targets != IGNORE).tolist():
        assert batch.targets[b, t] == batch.ids[b, t + 1]
        assert batch.segments[b, t] == batch.segments[b, t + 1]
    for b, t in torch.nonzero(batch.targets2 != IGNORE).tolist():
        assert batch.targets2[b, t] == batch.ids[b, t + 2]
        assert batch.segments[b, t] == batch.segments[b, t + 2]
    assert (batch.targets != IGNORE).sum() == 3 + 2
    assert (batch.targets2 != IGNORE).sum() == 2 + 1
    assert batch.segments.unique().tolist() == [0, 1, 2]


def test_answers_only_learns_from_the_first_answer_token_on() -> None:
    batch = stream([sample(0, 3, 7, 4, 6, 8, 1, answer_from=5)], answers_only=True, batch_size=1).next()
    assert batch.targets[0].tolist() == [IGNORE] * 4 + [8, 1, IGNORE, IGNORE]
    assert batch.targets2[0].tolist() == [IGNORE] * 3 + [8, 1, IGNORE, IGNORE, IGNORE]


def test_long_samples_are_cut_and_stay_whole_together() -> None:
    data = stream([sample(*range(100, 121))], batch_size=1)
    ids = [i for row in data.window_rows(0) for piece in row for i in piece.ids.tolist()]
    assert sorted(ids) == list(range(100, 121))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=300), st.integers(40, 64))
def test_packing_loses_nothing_and_overflows_nothing(sizes: list[int], length: int) -> None:
    pieces = [Piece(ids=np.full(size, i), learn=np.ones(size, dtype=bool)) for i, size in enumerate(sizes)]
    rows = pack(pieces, length)
    assert sorted(int(p.ids[0]) for row in rows for p in row) == list(range(len(sizes)))
    assert all(sum(len(p.ids) for p in row) <= length for row in rows)


def test_order_resumes_exactly_across_epochs() -> None:
    samples = [sample(0, *range(10, 10 + n), 1) for n in range(1, 6)]
    one = stream(samples)
    expected = [one.next().ids for _ in range(9)]
    two = stream(samples)
    for _ in range(4):
        two.next()
    three = stream(samples)
    three.position = two.position
    for wanted in expected[4:]:
        assert torch.equal(three.next().ids, wanted)
    assert three.position[0] > 0


def test_weights_repeat_samples() -> None:
    data = stream([sample(0, 9, 1, weight=3.0), sample(0, 8, 1, weight=0.0)])
    ids = [int(p.ids[1]) for row in data.window_rows(0) for p in row]
    assert ids == [9, 9, 9]


def test_fingerprint_follows_the_data() -> None:
    assert stream([sample(0, 1)]).fingerprint() == stream([sample(0, 1)]).fingerprint()
    assert stream([sample(0, 1)]).fingerprint() != stream([sample(0, 2)]).fingerprint()


def test_windows_cover_an_epoch_and_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed four samples at a time: every sample once an epoch, in another order each, and resumable."""
    monkeypatch.setattr("fourfold.train.data.WINDOW", 4)
    samples = [sample(0, 10 + n, 1) for n in range(10)]
    data = stream(samples, batch_size=1)
    epochs = [
        [
            int(p.ids[1])
            for window in range(3 * epoch, 3 * epoch + 3)
            for row in data.window_rows(window)
            for p in row
        ]
        for epoch in range(2)
    ]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10, 20))] * 2 and epochs[0] != epochs[1]
    whole, cut_off = stream(samples), stream(samples)
    expected = [whole.next().ids for _ in range(7)]
    for _ in range(3):
        cut_off.next()
    resumed = stream(samples)
    resumed.position = cut_off.position
    assert all(torch.equal(resumed.next().ids, wanted) for wanted in expected[3:])
