"""Whole runs of a tiny model: it learns, resumes to the same bits, survives a kill, and exports what it
trained.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fourfold
from fourfold import kernels
from fourfold.errors import ConfigError, TrainError
from fourfold.train import checkpoint
from fourfold.train.config import TrainConfig
from fourfold.train.objective import V4Objective
from fourfold.train.quantise import rounded_weights
from fourfold.train.record import read_metrics
from fourfold.train.trainer import Trainer, train

MakeConfig = Callable[..., TrainConfig]


def weights_hash(folder: Path) -> str:
    """Of the newest checkpoint's masters and optimiser state."""
    newest = checkpoint.checkpoints(folder)[-1]
    digest = hashlib.sha256()
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        for key, tensor in sorted(load_file(newest / name).items()):
            digest.update(key.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_it_learns(make_config: MakeConfig) -> None:
    result = train(make_config(run={"steps": 16}))
    rows = read_metrics(result.folder / "metrics.csv")
    assert rows[-1]["loss"] < rows[0]["loss"] - 1.5
    assert rows[-1]["held_out_loss"] < rows[0]["loss"] - 1.0
    assert (result.folder / "loss.png").stat().st_size > 1000
    assert (result.folder / "curves.png").stat().st_size > 1000
    record = json.loads((result.folder / "run.json").read_text(encoding="utf-8"))
    assert record["config"]["run"]["steps"] == 16
    assert [(start["step"], start["torch"]) for start in record["starts"]] == [(0, torch.__version__)]
    assert len(checkpoint.checkpoints(result.folder)) == 2


@pytest.mark.parametrize("kind", ["v4", "dense"])
def test_resumed_run_ends_with_the_same_bits(make_config: MakeConfig, tmp_path: Path, kind: str) -> None:
    quantised = {"start": 0.5}
    train(make_config(model={"kind": kind}, quantisation=quantised, run={"dir": str(tmp_path / "whole")}))
    config = make_config(model={"kind": kind}, quantisation=quantised, run={"dir": str(tmp_path / "cut")})
    first = Trainer(config)
    for _ in range(2):
        first.step()
    first.save()
    first.close()
    train(config)
    assert weights_hash(tmp_path / "whole") == weights_hash(tmp_path / "cut")


def test_killed_run_goes_on(make_config: MakeConfig, tmp_path: Path) -> None:
    """kill -9 while a checkpoint is written leaves complete ones only, and the run continues from the
    newest.
    """
    folder = tmp_path / "run"
    config = make_config(run={"steps": 10_000, "checkpoint_every": 1, "eval_every": 0})
    code = (
        "import json, sys; from fourfold.train.config import TrainConfig; "
        "from fourfold.train.trainer import train; train(TrainConfig.from_dict(json.loads(sys.argv[1])))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(config.to_dict())],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(fourfold.__file__).parents[1])},
    )
    limit = time.monotonic() + 120
    while len(checkpoint.checkpoints(folder)) < 2 and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = checkpoint.checkpoints(folder)
    assert found
    for path in found:
        checkpoint.load(path)
    done = checkpoint.load(found[-1])[2].step
    assert train(make_config(run={"steps": done + 2, "eval_every": 0})).steps == done + 2


def test_export_is_what_was_trained(make_config: MakeConfig, tokenizer_file: Path) -> None:
    """Exact numerics of the exported FP4/FP8 checkpoint equal the forward pass with rounded weights."""
    config = make_config(quantisation={"start": 0.0}, run={"export": True, "steps": 3})
    result = train(config)
    assert result.export is not None
    trainer = Trainer(config)
    ids = torch.arange(7, 71).unsqueeze(0)
    model = trainer.objective.module.eval()
    with torch.no_grad(), rounded_weights(trainer.parameters, trainer.objective.formats):
        model.numerics = fourfold.load(result.export).numerics  # type: ignore[assignment]
        expected = model(ids, mtp=True)
    trainer.close()
    loaded = fourfold.load(result.export)
    assert loaded.tokenizer is not None
    found = loaded(ids, mtp=True)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.mtp_logits, expected.mtp_logits, atol=1e-5, rtol=1e-5)


def test_bfloat16_and_seconds(make_config: MakeConfig) -> None:
    result = train(make_config(run={"steps": 0, "seconds": 1.5, "dtype": "bfloat16"}))
    assert result.steps >= 1 and result.seconds >= 1.5


def test_every_parameter_that_should_learn_does(make_config: MakeConfig) -> None:
    trainer = Trainer(make_config())
    before = {name: value.clone() for name, value in trainer.objective.masters().items()}
    for _ in range(2):
        trainer.step()
    trainer.close()
    unchanged = {n for n, v in trainer.objective.masters().items() if torch.equal(v, before[n])}
    # No sample is long enough to complete a block of layer 2's 128 tokens.
    idle = (".indexer.", "tid2eid", "layers.2.attn.compressor.")
    expected = {name for name in before if any(part in name for part in idle)}
    assert unchanged - expected == set()


def test_other_model_in_the_folder_is_refused(make_config: MakeConfig) -> None:
    train(make_config(run={"steps": 2}))
    with pytest.raises(TrainError, match="another model"):
        train(make_config(model={"kind": "dense"}))


def test_init_from_starts_with_those_weights(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config(run={"steps": 2}))
    source = checkpoint.checkpoints(tmp_path / "run")[-1]
    trainer = Trainer(make_config(model={"init_from": str(source)}, run={"dir": str(tmp_path / "other")}))
    saved = load_file(source / checkpoint.MODEL)
    assert all(torch.equal(value, saved[name]) for name, value in trainer.objective.masters().items())
    assert trainer.state.step == 0
    trainer.close()


def test_vocabulary_must_hold_the_tokenizer(make_config: MakeConfig, tmp_path: Path) -> None:
    from tests.train.conftest import MODEL

    config = make_config()
    (tmp_path / "config.json").write_text(json.dumps(MODEL | {"vocab_size": 300}), encoding="utf-8")
    with pytest.raises(ConfigError, match="vocab_size"):
        Trainer(config)


def test_indexer_loss_trains_the_indexers_alone(make_config: MakeConfig) -> None:
    """It falls, and without the other losses nothing but the indexers has a gradient."""
    trainer = Trainer(make_config(loss={"indexer": 1.0}, optimizer={"matrices": "adamw", "adamw_lr": 0.01}))
    batch = trainer.data.next()
    objective = trainer.objective
    assert isinstance(objective, V4Objective)
    losses = []
    for step in range(6):
        objective.loss(batch, 0.5, step)  # the routers' state
        objective.indexers.start()
        with kernels.replaced("cpu", objective.operations):
            objective.model.hidden(batch.ids, batch.segments)
        loss = objective.indexers.take()
        assert loss is not None
        loss.backward()
        with_gradient = {n for n, p in trainer.parameters.items() if p.grad is not None}
        assert with_gradient and all(".indexer." in name for name in with_gradient)
        trainer.optimizer.step(1.0)
        losses.append(loss.item())
    trainer.close()
    assert losses[-1] < losses[0]
    assert min(losses) >= 0
