"""Adapters learn: gradients through packed weights, runs that resume to the bit, what comes out is served."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fourfold
from fourfold import ConfigError, Engine, EngineConfig, Request, TrainError, kernels
from fourfold.conformance.kernel_cases import Draw
from fourfold.kernels.formats import decode
from fourfold.model.transformer import Transformer
from fourfold.train.config import TrainConfig, load_config
from fourfold.train.data import IGNORE
from fourfold.train.frozen import FrozenProducts
from fourfold.train.fused import Fused
from fourfold.train.losses import head_cross_entropy
from fourfold.train.masters import read_masters
from fourfold.train.trainer import Trainer, train
from fourfold.weights.adapter import base_fingerprint, read_adapter
from fourfold.weights.export import export_checkpoint

MakeConfig = Callable[..., TrainConfig]
EXACT = FrozenProducts(torch.device("cpu"), torch.float32)


@pytest.fixture
def make_lora(tmp_path: Path, tiny_folder: Path, corpus_file: Path) -> MakeConfig:
    """make_lora(section={key: value}): a float32 run of a few steps in tmp_path/run."""

    def make(**changes: dict[str, Any]) -> TrainConfig:
        values: dict[str, dict[str, Any]] = {
            "lora": {"base": str(tiny_folder), "rank": 3, "alpha": 6.0, "targets": ["layers.*"]},
            "data": {
                "tokenizer": str(tiny_folder),
                "files": [{"path": str(corpus_file), "kinds": ["qa"]}],
                "held_out_share": 0.2,
                "sequence_length": 48,
                "batch_size": 2,
                "loss_on": "answers",
            },
            "optimizer": {"matrices": "adamw", "adamw_lr": 1e-2},
            "run": {
                "dir": str(tmp_path / "run"),
                "steps": 4,
                "dtype": "float32",
                "checkpoint_every": 2,
                "eval_every": 2,
                "threads": 1,
            },
        }
        for section, change in changes.items():
            values.setdefault(section, {}).update(change)
        return TrainConfig.from_dict(values)

    return make


@pytest.mark.parametrize("format", ["f32", "bf16", "fp8", "fp4", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_a_frozen_product(format: str, dtype: torch.dtype) -> None:
    draw = Draw(1)
    weight, scale = draw.stored(format, 384, 256)
    x, upstream = draw.normal(2, 5, 256).requires_grad_(), draw.normal(2, 5, 384)
    y = FrozenProducts(torch.device("cpu"), dtype).linear(x, weight, scale)
    (got,) = torch.autograd.grad(y, x, upstream)
    reference = F.linear(x, decode(weight, scale))
    (expected,) = torch.autograd.grad(reference, x, upstream)
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    assert (got - expected).norm() < bound * expected.norm()
    assert (y - reference).norm() < bound * reference.norm()
    if dtype == torch.float32:
        # A product is linear, so that finite differences are exact but for rounding.
        step = draw.normal(2, 5, 256)
        with torch.no_grad():
            difference = EXACT.linear(x + step, weight, scale) - EXACT.linear(x - step, weight, scale)
        assert float((difference * upstream).sum()) == pytest.approx(2 * float((got * step).sum()), rel=1e-3)


def test_gradients_of_grouped_products_and_experts() -> None:
    draw = Draw(2)
    weight, scale = draw.stored("fp8", 2 * 64, 128)  # groups that share a block of scales
    x = draw.normal(1, 3, 2, 128).requires_grad_()
    (got,) = torch.autograd.grad(EXACT.grouped_linear(x, weight, scale, 2).square().sum(), x)
    y = torch.einsum("...gi,goi->...go", x, decode(weight, scale).unflatten(0, (2, -1)))
    (expected,) = torch.autograd.grad(y.square().sum(), x)
    assert (got - expected).norm() < 1e-5 * expected.norm()
    stacks = [part for shape in ((64, 128), (64, 128), (128, 64)) for part in draw.stored("fp4", 4, *shape)]
    rows, weights = (draw.normal(9, 128) / 16).requires_grad_(), draw.normal(9, 2).abs().requires_grad_()
    indices = torch.stack([torch.randperm(4, generator=draw.generator)[:2] for _ in range(9)])
    results = [
        torch.autograd.grad(run(rows, indices, weights, *stacks, 10.0).square().sum(), (rows, weights))
        for run in (EXACT.experts, kernels.reference.experts)
    ]
    for got, expected in zip(*results, strict=True):
        assert (got - expected).norm() < 1e-4 * expected.norm()


def whole_gradients(trainer: Trainer, batch: Any) -> tuple[float, dict[str, Tensor]]:
    """Loss, and gradients of A and B, by a float32 model whose weights are W + scale · B·A."""
    objective: Any = trainer.objective
    model = Transformer(objective.model_config)
    scale = objective.lora.alpha / objective.lora.rank
    values = read_masters(objective.folder)
    for name, value in values.items():
        model.assign(name, value)
    pairs = {}
    for module, (a, b) in objective.weights.matrices().items():
        own = a.detach().clone().requires_grad_(), b.detach().clone().requires_grad_()
        pairs[module] = own
        path, _, leaf = f"{module}.weight".rpartition(".")
        owner: Any = model.get_submodule(path)
        del owner._parameters[leaf]
        merged = values[f"{module}.weight"] + own[1] @ own[0] * scale
        owner._parameters[leaf] = merged
        owner._changed()
    with kernels.replaced("cpu", {**Fused().operations}):
        hidden, _, _ = model.hidden(batch.ids, batch.segments)
        loss = head_cross_entropy(hidden, model.head.weight, batch.targets, torch.float32)
    loss.backward()
    grads = {
        f"{module}.lora_{letter}.weight": part.grad
        for module, pair in pairs.items()
        for letter, part in zip("AB", pair, strict=True)
    }
    return loss.item(), grads


def test_gradients_are_those_of_the_merged_weights(make_lora: MakeConfig) -> None:
    trainer = Trainer(make_lora())
    try:
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in trainer.parameters.items():
                if ".lora_B" in name:  # zero at first, where A has no gradient
                    parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
        batch = trainer.data.next()
        loss, _ = trainer.objective.loss(batch, 0.0, 0)
        loss.backward()
        expected_loss, expected = whole_gradients(trainer, batch)
        assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
        assert expected.keys() == trainer.parameters.keys()
        for name, gradient in expected.items():
            got = trainer.parameters[name].grad
            assert got is not None
            assert (got - gradient).norm() <= 1e-3 * gradient.norm(), name
        # A step along the gradient, by finite differences of the whole loss.
        gradients = {name: p.grad for name, p in trainer.parameters.items() if p.grad is not None}
        norm = sum(float(gradient.square().sum()) for gradient in gradients.values()) ** 0.5
        ends = []
        for move in (1e-3, -2e-3):
            with torch.no_grad():
                for name, gradient in gradients.items():
                    trainer.parameters[name].add_(gradient, alpha=move / norm)
                ends.append(trainer.objective.evaluate(batch))
        assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(norm, rel=2e-2)
    finally:
        trainer.close()


def digest(folder: Path) -> str:
    files = sorted(folder.rglob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def test_a_resumed_run_ends_with_the_same_bits(make_lora: MakeConfig, tmp_path: Path) -> None:
    given: dict[str, dict[str, Any]] = {
        "run": {"dtype": "bfloat16", "recompute": True, "ema": 0.5, "eval_every": 9},
        "schedule": {"kind": "constant", "warmup": 0.0},
        "lora": {"targets": ["layers.1.*", "layers.3.ffn.*"]},
    }

    def run(**more: Any) -> Path | None:
        return train(make_lora(**{**given, "run": {**given["run"], **more}})).export

    run(steps=2, export=False)
    resumed, straight = run(steps=3), run(steps=3, dir=str(tmp_path / "straight"))
    other = run(steps=2, dir=str(tmp_path / "straight" / "other"))
    assert resumed is not None and straight is not None and other is not None
    assert digest(resumed) == digest(straight) != digest(other)


def test_what_was_learnt_is_served(make_lora: MakeConfig, tiny_folder: Path) -> None:
    config = make_lora(run={"steps": 10, "eval_every": 10, "checkpoint_every": 10})
    trainer = Trainer(config)
    try:
        assert trainer.held_out is not None
        before, after = trainer.evaluate(), trainer.run()
        batch = trainer.held_out.batch(trainer.held_out.window_rows(0)[:1])
        objective: Any = trainer.objective
    finally:
        trainer.close()
    assert after.export is not None and after.held_out_loss is not None
    assert after.held_out_loss < before - 0.5
    adapter = read_adapter(after.export, objective.model_config, base_fingerprint(tiny_folder))
    assert adapter.scale == 2.0 and len(adapter.matrices) == 4 * 11
    # The first sample of the held-out rows, scored by the engine.
    count = int((batch.segments[0] == 0).sum())
    ids, targets = batch.ids[0, :count].tolist(), batch.targets[0, :count]
    with Engine(
        fourfold.load(tiny_folder), EngineConfig(memory="64MiB"), adapters={"own": after.export}
    ) as engine:
        answer = engine.submit(Request(prompt=ids, max_tokens=0, prompt_logprobs=0, adapter="own"))
        list(engine.chunks(answer))
    assert answer.prompt_logprobs is not None
    told = [one.logprob for one in answer.prompt_logprobs[1:] if one is not None]
    learnt = [-one for one, target in zip(told, targets.tolist(), strict=False) if target != IGNORE]
    one = type(batch)(**{name: value[:1, :count] for name, value in vars(batch).items()})
    assert sum(learnt) / len(learnt) == pytest.approx(objective.evaluate(one), rel=1e-4)


def test_another_base_or_rank_does_not_go_on(make_lora: MakeConfig, tmp_path: Path) -> None:
    train(make_lora(run={"steps": 1, "checkpoint_every": 1, "export": False}))
    with pytest.raises(TrainError, match="has shape"):
        Trainer(make_lora(lora={"rank": 4}))
    with pytest.raises(TrainError, match="holds another model"):
        Trainer(make_lora(lora={"targets": ["*.wq_a"]}))
    other = export_checkpoint(make_lora().lora.base, tmp_path / "other", experts="fp8", progress=False)
    with pytest.raises(TrainError, match="holds no adapter of"):
        Trainer(make_lora(lora={"base": str(other)}))


def test_what_has_no_effect_is_refused(make_lora: MakeConfig) -> None:
    for section, key, value in (
        ("loss", "mtp", 0.5), ("distil", "teacher", "x"), ("quantisation", "start", 0.5),
        ("stability", "lag", 3), ("model", "config", "x"), ("run", "compile", True),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"lora\.base"):
            make_lora(**{section: {key: value}})
    with pytest.raises(ConfigError, match=r"\[model\] lacks: config"):
        make_lora(lora={"base": ""})
    with pytest.raises(ConfigError, match=r"lora\.rank is 0"):
        make_lora(lora={"rank": 0})
    with pytest.raises(ConfigError, match="names no matrix"):
        Trainer(make_lora(lora={"targets": ["*.gate"]}))


def test_the_example_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    changes = [f"run.dir={tmp_path}", "run.steps=3", "run.eval_every=3", "run.threads=1", "data.batch_size=2"]
    trainer = Trainer(load_config("examples/lora.toml", changes))
    try:
        before, after = trainer.evaluate(), trainer.run()
    finally:
        trainer.close()
    assert after.held_out_loss is not None and after.held_out_loss < before - 0.3
