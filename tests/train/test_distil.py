"""Learning from a teacher's logits: the loss against plain torch, teachers of both kinds, the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from fourfold.errors import ConfigError, TrainError
from fourfold.train.config import TrainConfig
from fourfold.train.data import IGNORE, PackedData
from fourfold.train.distil import DistilObjective
from fourfold.train.divergence import Divergence, head_divergence
from fourfold.train.record import read_metrics
from fourfold.train.teacher import TransformersTeacher, V4Teacher
from fourfold.train.teacher_cache import CachedTeacher
from fourfold.train.trainer import Trainer, train

MakeConfig = Callable[..., TrainConfig]
KINDS = [
    Divergence(share=1.0, reverse=False, top_k=0, temperature=1.0),
    Divergence(share=0.7, reverse=False, top_k=0, temperature=2.0),
    Divergence(share=1.0, reverse=True, top_k=0, temperature=1.0),
    Divergence(share=0.5, reverse=False, top_k=5, temperature=1.0),
]


def plain(student: Tensor, teacher: Tensor, targets: Tensor, kind: Divergence) -> Tensor:
    """The definition, by torch's own losses."""
    t = kind.temperature
    p, q = (teacher / t).softmax(-1), (student / t).softmax(-1)
    if kind.top_k:
        best = p.argsort(dim=-1, descending=True)[:, : kind.top_k]
        p, q = (
            torch.cat([x.gather(-1, best), 1 - x.gather(-1, best).sum(-1, keepdim=True)], -1) for x in (p, q)
        )
    a, b = (q, p) if kind.reverse else (p, q)
    kl = F.kl_div(b.log(), a, reduction="batchmean") * t * t
    return kind.share * kl + (1 - kind.share) * F.cross_entropy(student, targets)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_loss_and_gradients_are_those_of_the_definition(kind: Divergence) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 9, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    theirs, head = torch.randn(2, 9, 6), torch.randn(48, 6)  # a vocabulary that is padded further
    targets = torch.randint(0, 40, (2, 9))
    targets[0, 3:5] = IGNORE
    loss, _, _ = head_divergence(hidden, weight, theirs, head, targets, kind, torch.float32)
    found = torch.autograd.grad(loss, (hidden, weight))
    chosen = targets.flatten() != IGNORE
    student = (hidden @ weight.T).flatten(0, 1)[chosen]
    teacher = (theirs @ head[:40].T).flatten(0, 1)[chosen]
    expected = plain(student, teacher, targets.flatten()[chosen], kind)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for mine, theirs_ in zip(found, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        torch.testing.assert_close(mine, theirs_, atol=1e-5, rtol=1e-4)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, weight, head = torch.randn(3, 50, 8), torch.randn(40, 8), torch.randn(40, 8)
    targets = torch.randint(0, 40, (3, 50))
    args = (hidden, weight, hidden.flip(0), head, targets, KINDS[0], torch.float32)
    whole = head_divergence(*args)
    monkeypatch.setattr("fourfold.train.divergence.CHUNK_LOGITS", 40 * 7)
    torch.testing.assert_close(head_divergence(*args), whole, atol=1e-5, rtol=1e-5)


def distil_config(make_config: MakeConfig, teacher: Path, **distil: Any) -> TrainConfig:
    return make_config(distil={"teacher": str(teacher), **distil}, model={"seed": 5}, run={"steps": 6})


def test_student_comes_nearer_and_the_cache_gives_the_same(
    make_config: MakeConfig, teacher_folder: Path, tmp_path: Path
) -> None:
    result = train(distil_config(make_config, teacher_folder, share=1.0))
    online = read_metrics(result.folder / "metrics.csv")
    assert online[-1]["kl"] < 0.85 * online[0]["kl"]
    cached = make_config(
        distil={"teacher": str(teacher_folder), "share": 1.0, "cache": str(tmp_path / "states")},
        model={"seed": 5},
        run={"steps": 6, "dir": str(tmp_path / "cached")},
    )
    rows = read_metrics(train(cached).folder / "metrics.csv")
    # Kept as bfloat16, 8 bits of mantissa.
    assert [r["kl"] for r in rows] == pytest.approx([r["kl"] for r in online], rel=0.02)


def test_cache_is_filled_once_and_goes_on_after_a_kill(
    make_config: MakeConfig, teacher_folder: Path, tmp_path: Path
) -> None:
    trainer = Trainer(distil_config(make_config, teacher_folder, cache=str(tmp_path / "states")))
    assert isinstance(trainer.objective, DistilObjective)
    cache = trainer.objective.teacher
    assert isinstance(cache, CachedTeacher)
    assert isinstance(trainer.data, PackedData)
    samples = cache.missing(torch.from_numpy(ids).long() for ids in trainer.data.pieces())
    trainer.close()
    cache.fill(samples[:5], torch.device("cpu"), lambda done: None)
    with (cache.folder / "states.bin").open("ab") as file:
        file.write(b"half a row")  # of the sample that was being written
    with (cache.folder / "index.jsonl").open("a") as file:
        file.write('["half a li')

    name = json.loads((cache.folder / "teacher.json").read_text())["teacher"]
    again = CachedTeacher(cache.folder, name, cache._open)
    left = again.missing(samples)
    assert len(left) == len(samples) - 5
    again.fill(left, torch.device("cpu"), lambda done: None)
    again = CachedTeacher(cache.folder, name, cache._open)
    assert again.missing(samples) == []
    teacher = V4Teacher(teacher_folder, torch.device("cpu"))
    for sample in (samples[0], samples[-1]):
        ids = sample[None]
        segments = torch.zeros_like(ids)
        expected = teacher.hidden(ids, segments).to(torch.bfloat16)
        torch.testing.assert_close(again.hidden(ids, segments), expected, atol=0.02, rtol=0.02)


def test_cache_of_another_teacher_is_refused(
    make_config: MakeConfig, teacher_folder: Path, tmp_path: Path
) -> None:
    config = distil_config(make_config, teacher_folder, cache=str(tmp_path / "states"))
    Trainer(config).close()
    (tmp_path / "states" / "teacher.json").write_text('{"teacher": "somebody"}')
    with pytest.raises(TrainError, match="holds hidden states of 'somebody'"):
        Trainer(config)


def test_transformers_teacher_sees_samples_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(shape).save_pretrained(tmp_path)
    teacher = TransformersTeacher(tmp_path, torch.device("cpu"), torch.float32)
    ids = torch.randint(0, 64, (2, 12))
    segments = torch.tensor([[0] * 5 + [1] * 7, [0] * 9 + [1] * 3])
    hidden = teacher.hidden(ids, segments)
    alone = teacher.model(input_ids=ids[:1, 5:]).logits
    torch.testing.assert_close(hidden[:1, 5:] @ teacher.head.T, alone, atol=1e-4, rtol=1e-4)


def test_no_teacher_in_the_folder(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the teacher .*no readable config\.json"):
        Trainer(distil_config(make_config, tmp_path / "nothing"))
