"""What changes how a step is computed and not what it computes, the averaged weights, and what follows a
spike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fourfold import kernels
from fourfold.errors import ConfigError
from fourfold.model.indexer import Indexer
from fourfold.train.config import TrainConfig
from fourfold.train.objective import V4Objective
from fourfold.train.trainer import Trainer, train
from tests.train.test_trainer import weights_hash

MakeConfig = Callable[..., TrainConfig]


def gradients(config: TrainConfig) -> tuple[dict[str, Tensor], dict[str, float]]:
    trainer = Trainer(config)
    values = trainer._gradients(trainer.data.next(), 0.5, 0)
    trainer.close()
    return {n: p.grad for n, p in trainer.parameters.items() if p.grad is not None}, values


def test_parts_of_a_step_sum_to_the_step(make_config: MakeConfig) -> None:
    loss = {"balance": 0.0}  # which is a mean over rows, not over tokens
    whole, numbers = gradients(make_config(data={"batch_size": 4}, loss=loss))
    parts, sums = gradients(make_config(data={"batch_size": 4, "accumulate": 4}, loss=loss))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        # MTP has fewer targets than the next token, so its weights differ by a few in a hundred.
        part = parts[name]
        if "mtp" not in name:
            assert torch.nn.functional.cosine_similarity(value.flatten(), part.flatten(), dim=0) > 0.99, name
    assert sums["loss"] == pytest.approx(numbers["loss"], abs=1e-5)


def test_parts_without_other_losses_are_exact(make_config: MakeConfig) -> None:
    loss = {"balance": 0.0, "mtp": 0.0, "mtp_final": 0.0}
    whole, _ = gradients(make_config(data={"batch_size": 4}, loss=loss))
    parts, _ = gradients(make_config(data={"batch_size": 4, "accumulate": 2}, loss=loss))
    for name, value in whole.items():
        # Float32 sums of other order.
        torch.testing.assert_close(parts[name], value, atol=2e-6, rtol=2e-4, msg=name)


def test_recomputed_activations_give_the_same_bits(make_config: MakeConfig) -> None:
    loss = {"indexer": 0.5, "balance": 0.1}
    kept, numbers = gradients(make_config(loss=loss))
    again, same = gradients(make_config(loss=loss, run={"recompute": True}))
    assert numbers == same
    assert kept.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in kept.items())


def test_recomputing_keeps_less(make_config: MakeConfig) -> None:
    def saved(config: TrainConfig) -> int:
        trainer = Trainer(config)
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        owned = {p.untyped_storage().data_ptr() for p in trainer.parameters.values()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            trainer.objective.loss(trainer.data.next(), 0.5, 0)
        trainer.close()
        return sum(size for place, size in sizes.items() if place not in owned)

    assert saved(make_config(run={"recompute": True})) < 0.5 * saved(make_config())


def test_average_is_what_is_evaluated_and_exported(make_config: MakeConfig) -> None:
    trainer = Trainer(make_config(run={"ema": 0.5}))
    expected = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    for _ in range(3):
        trainer.step()
        for name, p in trainer.parameters.items():
            expected[name] = 0.5 * expected[name] + 0.5 * p.detach()
    weights = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    with trainer.average.applied():
        for name, p in trainer.parameters.items():
            torch.testing.assert_close(p.detach(), expected[name], atol=1e-6, rtol=1e-6)
    assert all(torch.equal(p, weights[name]) for name, p in trainer.parameters.items())
    averaged = trainer.evaluate()
    trainer.average.values = weights
    assert averaged != trainer.evaluate()
    trainer.close()


def test_all_of_it_resumes_to_the_same_bits(make_config: MakeConfig, tmp_path: Path) -> None:
    def config(name: str) -> TrainConfig:
        return make_config(
            run={"dir": str(tmp_path / name), "ema": 0.9, "recompute": True, "steps": 6},
            data={"accumulate": 2},
            stability={"spike": 3.0, "lag": 2, "hold": 2},
        )

    train(config("whole"))
    first = Trainer(config("cut"))
    for _ in range(3):
        first.step()
    first.save()
    first.close()
    train(config("cut"))
    assert weights_hash(tmp_path / "whole") == weights_hash(tmp_path / "cut")


def test_dense_attention_until(make_config: MakeConfig) -> None:
    """Of two visible entries an indexer with topk 1 leaves one out, except while attention is dense."""
    trainer = Trainer(make_config(loss={"dense_until": 0.5}))
    trainer.close()
    objective = trainer.objective
    assert isinstance(objective, V4Objective)
    ids = torch.arange(7, 71).unsqueeze(0)
    segments = torch.zeros_like(ids)

    def hidden(share: float, topk: int) -> Tensor:
        for module in objective.model.modules():
            if isinstance(module, Indexer):
                module.topk = topk
        batch: Any = type("Part", (), {"ids": ids, "segments": segments})
        with kernels.replaced("cpu", objective._operations(batch, share)):
            return objective.model.hidden(ids, segments)[0]

    torch.testing.assert_close(hidden(0.1, 1), hidden(0.9, 64), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(hidden(0.9, 1), hidden(0.9, 64), atol=1e-3)


def test_a_spike_is_left_out_and_older_weights_choose(make_config: MakeConfig) -> None:
    trainer = Trainer(make_config(stability={"spike": 4.0, "lag": 2, "hold": 2}, run={"steps": 50}))
    for _ in range(3):
        trainer.step()
    watch = trainer.objective.anticipation
    watch.recent = [1.0, 1.1] * 8  # so that the losses of this run, which are larger, are a spike
    before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    values = trainer.step()
    assert "grad_norm" not in values and values["anticipated"] == 0.0
    trained = {n: p for n, p in trainer.parameters.items() if p.requires_grad}
    assert all(torch.equal(p, before[name]) for name, p in trained.items())

    older = {name: value.clone() for name, value in watch.older.items()}
    batch = trainer.data.next()
    objective = trainer.objective
    assert isinstance(objective, V4Objective)
    with kernels.replaced("cpu", objective._operations(batch, 0.5)):
        followed = [r.indices for r in objective.model.hidden(batch.ids, batch.segments, mtp=True)[2]]
    for name, p in trainer.parameters.items():
        p.data = older[name]
    with kernels.replaced("cpu", objective.operations), torch.no_grad():
        own = [r.indices for r in objective.model.hidden(batch.ids, batch.segments, mtp=True)[2]]
    trainer.close()
    assert all(torch.equal(a, b) for a, b in zip(followed, own, strict=True))


def test_parts_divide_the_batch(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"data\.accumulate is 3.*2 rows"):
        make_config(data={"accumulate": 3})
