"""Figures against their definitions, intervals against known ones, and files that are no tasks."""

from __future__ import annotations

import json
import lzma
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fourfold
from fourfold.errors import RequestError
from fourfold.evaluation import scoring
from fourfold.evaluation.intervals import Ratio, difference, interval
from fourfold.evaluation.measures import Evaluator, Figure
from fourfold.evaluation.scoring import Scored, score
from fourfold.evaluation.tasks import read_task
from fourfold.protocol import Chat


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> fourfold.Transformer:
    return fourfold.load(tiny_folder)


def written(folder: Path, *records: Any, name: str = "task.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def figures(model: fourfold.Transformer, path: Path, max_tokens: int = 8) -> dict[str, Figure]:
    found = Evaluator(model, "preview", max_tokens).run(read_task(path), lambda done: None)
    return {figure.name: figure for figure in found}


def nats(model: fourfold.Transformer, ids: list[int], start: int) -> float:
    """Of the tokens from `start` on, by torch's own loss on the text alone."""
    logits = model(torch.tensor([ids])).logits[0, :-1]
    losses = F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    return float(losses[start - 1 :].sum())


def test_scores_are_those_of_each_text_alone(model: fourfold.Transformer) -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [
        Scored(ids=torch.randint(0, 400, (length,), generator=generator).tolist(), start=start)
        for length, start in ((40, 1), (3, 2), (1, 1), (17, 9), (40, 39))
    ]
    done: list[int] = []
    for text, found in zip(texts, score(model, texts, done.append), strict=True):
        assert found.tokens == len(text.ids) - text.start
        assert -found.logprob == pytest.approx(nats(model, list(text.ids), text.start) if found.tokens else 0)
    assert done[-1] == len(texts)


def test_long_texts_run_in_chunks(model: fourfold.Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [Scored(ids=[(7 * i) % 400 for i in range(90)], start=5)]
    (whole,) = score(model, texts)
    monkeypatch.setattr(scoring, "CALL_TOKENS", 16)
    (parts,) = score(model, texts)
    assert parts.logprob == pytest.approx(whole.logprob, abs=1e-3)
    assert parts.tokens == whole.tokens == 85


def test_a_text_beyond_the_model_is_refused(model: fourfold.Transformer) -> None:
    with pytest.raises(RequestError, match=r"513 tokens; this model has positions for 512"):
        score(model, [Scored(ids=[1] * 513, start=1)])


def test_perplexity_is_of_the_text_or_the_response(model: fourfold.Transformer, tmp_path: Path) -> None:
    assert model.tokenizer is not None
    encode, config = model.tokenizer.encode, model.config
    text = figures(model, written(tmp_path, {"text": "once upon é"}))
    ids = [config.bos_token_id, *encode("once upon é"), config.eos_token_id]
    expected = nats(model, ids, 1)
    assert text["nats per token"].ratio.value == pytest.approx(expected / (len(ids) - 1))
    assert text["bits per byte"].ratio.value == pytest.approx(
        expected / math.log(2) / len("once upon é".encode())
    )
    answer = figures(model, written(tmp_path, {"prompt": "who?", "response": "a cat"}))
    head = Chat(messages=[{"role": "user", "content": "who?"}]).prompt().encode(model.tokenizer)
    whole = [*head, *encode("a cat"), config.eos_token_id]
    tokens = len(whole) - len(head)
    assert answer["nats per token"].ratio.value == pytest.approx(nats(model, whole, len(head)) / tokens)


def test_choices_and_pairs_take_the_likelier(model: fourfold.Transformer, tmp_path: Path) -> None:
    assert model.tokenizer is not None
    start, encode = [model.config.bos_token_id], model.tokenizer.encode
    choices = [" cat", " time there was", " q"]
    sums = [-nats(model, start + encode("once" + c), len(start + encode("once"))) for c in choices]
    best, even = (
        int(np.argmax(sums)),
        int(np.argmax([s / len(c) for s, c in zip(sums, choices, strict=True)])),
    )
    records = [{"context": "once", "choices": choices, "answer": i} for i in range(3)]
    found = figures(model, written(tmp_path, *records))
    assert found["right choice"].ratio.above.tolist() == [i == best for i in range(3)]
    assert found["right choice, per byte"].ratio.above.tolist() == [i == even for i in range(3)]
    a, b = (nats(model, start + encode(text), 1) for text in ("a cat", "cat a"))
    pairs = figures(
        model, written(tmp_path, {"good": "a cat", "bad": "cat a"}, {"good": "cat a", "bad": "a cat"})
    )
    assert pairs["good one likelier"].ratio.above.tolist() == [a < b, b < a]


def test_exact_answers_are_greedy_ones(model: fourfold.Transformer, tmp_path: Path) -> None:
    assert model.tokenizer is not None
    prompt = Chat(messages=[{"role": "user", "content": "who?"}]).prompt().encode(model.tokenizer)
    said = "".join(fourfold.generate(model, prompt, max_tokens=4, temperature=0.0))
    records = [{"prompt": "who?", "expected": e} for e in (said, ["no", f" {said} "], "no")]
    found = figures(model, written(tmp_path, *records), max_tokens=4)
    assert found["exact answer"].ratio.above.tolist() == [1, 1, 0]


def test_intervals_hold_what_they_promise() -> None:
    """Of 200 samples of a share, about 95 % have the truth in their interval."""
    generator = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        hits = (generator.random(80) < 0.7).astype(float)
        low, high = interval(Ratio(above=hits, below=np.ones(80)))
        inside += low <= 0.7 <= high
    # Three standard deviations of 200 draws at 0.95, and the bootstrap's own small optimism.
    assert 0.88 <= inside / 200 <= 0.99


def test_a_difference_is_paired() -> None:
    hard = np.random.default_rng(2).random(400) * 10
    ones = np.ones(400)
    gap, low, high = difference(Ratio(above=hard + 0.01, below=ones), Ratio(above=hard, below=ones))
    assert gap == pytest.approx(0.01)
    assert 0.009 < low <= high < 0.011


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "has no records"),
        ([{"question": "?"}], r"line 1 has the keys question"),
        ([{"text": "a"}, {"good": "a", "bad": "b"}], r"line 2 is for pairs and perplexity"),
        (
            [{"context": "a", "choices": ["b", "c"], "answer": 2}],
            r"line 1 has the keys context, choices, answer",
        ),
        ([[1]], "line 1 is no JSON object"),
        ([{"prompt": "a", "expected": []}], "line 1 has the keys"),
    ],
)
def test_what_is_no_task_is_named(tmp_path: Path, records: list[Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_task(written(tmp_path, *records))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    (tmp_path / "b.jsonl.xz").write_bytes(b"no xz")
    for name, message in (
        ("a.jsonl", "line 2 is not JSON"),
        ("b.jsonl.xz", "cannot read"),
        ("c.jsonl", "cannot read"),
        ("d.csv", r"allowed: \.jsonl"),
    ):
        with pytest.raises(RequestError, match=message):
            read_task(tmp_path / name)


def test_compressed_and_limited(tmp_path: Path) -> None:
    path = tmp_path / "held.jsonl.xz"
    path.write_bytes(lzma.compress(b'{"text": "a"}\n{"text": "b"}\n'))
    task = read_task(path, limit=1)
    assert (task.name, task.kind, task.records) == ("held", "perplexity", [{"text": "a"}])
