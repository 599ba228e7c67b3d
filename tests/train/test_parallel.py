"""Several processes against one: the same losses and weights, one checkpoint, the same bits when resumed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fourfold
from fourfold.errors import ConfigError
from fourfold.train import checkpoint
from fourfold.train.config import TrainConfig
from fourfold.train.divided import owners
from fourfold.train.parallel import Ranks
from fourfold.train.record import read_metrics
from fourfold.train.trainer import Trainer, check_ranks, train

MakeConfig = Callable[..., TrainConfig]
CODE = (
    "import json, sys; from fourfold.train.config import TrainConfig; "
    "from fourfold.train.trainer import train; train(TrainConfig.from_dict(json.loads(sys.argv[1])))"
)
COMMON: dict[str, Any] = {
    "data": {"batch_size": 4},
    # With a smaller eps AdamW makes whole steps of gradients that are nothing but rounding.
    "optimizer": {"lr": 1e-3, "adamw_lr": 1e-3, "eps": 1e-5},
    "quantisation": {"start": 0.5},
}


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found: int = free.getsockname()[1]
        return found


def together(config: TrainConfig, size: int) -> None:
    """`train` in `size` processes, started as torchrun does."""
    world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
    path = {"PYTHONPATH": str(Path(fourfold.__file__).parents[1])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, json.dumps(config.to_dict())],
            env=os.environ | world | path | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * size, said


def newest(folder: Path, name: str = checkpoint.MODEL) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.checkpoints(folder)[-1] / name)


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.csv")]


def same(one: Path, other: Path) -> None:
    """Curves, weights and optimiser state.

    The sums are of the same numbers in another order, so gradients differ by 1e-6 of them. Muon makes whole
    steps of directions that have next to no gradient, in bf16: up to half a percent of mHC's small matrices.
    """
    torch.testing.assert_close(losses(other), losses(one), rtol=1e-4, atol=1e-4)
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        expected, found = newest(one, name), newest(other, name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert (found[key].double() - value).norm() <= 0.01 * value.double().norm() + 1e-5, key


def test_two_ranks_are_one_process(make_config: MakeConfig, tmp_path: Path) -> None:
    """With averaged weights, FP4, MTP and balancing; one checkpoint, and one export that loads.  Cut in two
    the run ends with the same bits, and one process goes on where two stopped.
    """
    run: dict[str, Any] = {"steps": 4, "ema": 0.9, "keep": 9, "export": True}
    one, two = tmp_path / "one", tmp_path / "two"
    parts = COMMON | {"data": {"batch_size": 4, "accumulate": 2}}
    train(make_config(**parts, run=run | {"dir": str(one)}))
    config = make_config(**COMMON, run=run | {"dir": str(two)})
    together(config, 2)
    same(one, two)
    assert fourfold.load(two / "export").config.n_routed_experts == 4
    whole = checkpoint.checkpoints(two)[-1]
    os.rename(whole, tmp_path / "whole")
    together(config, 2)
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        resumed = load_file(whole / name)
        assert all(
            torch.equal(resumed[key], value) for key, value in load_file(tmp_path / "whole" / name).items()
        )
    shutil.rmtree(whole)
    train(make_config(**parts, run=run | {"dir": str(two)}))
    same(one, two)


def test_replicas_of_divided_experts(make_config: MakeConfig, tmp_path: Path) -> None:
    """Two replicas of two ranks; older weights choose experts after a spike, as in one process."""
    stability = {"spike": 0.001, "lag": 1, "hold": 1}
    changes: dict[str, Any] = COMMON | {"stability": stability, "loss": {"mtp_every": 2}}
    run: dict[str, Any] = {"steps": 3, "eval_every": 0}
    parts = changes | {"data": {"batch_size": 4, "accumulate": 4}}
    train(make_config(**parts, run=run | {"dir": str(tmp_path / "one")}))
    four = make_config(**changes, run=run | {"dir": str(tmp_path / "four")}, parallel={"replicas": 2})
    together(four, 4)
    same(tmp_path / "one", tmp_path / "four")


def test_what_ranks_cannot_share_is_refused(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"parallel\.replicas is 3"):
        Ranks(size=4, replicas=3)
    with pytest.raises(ConfigError, match="make it a multiple of 6"):
        check_ranks(make_config(data={"batch_size": 4, "accumulate": 2}), 3)
    with pytest.raises(ConfigError, match=r"distil\.cache"):
        check_ranks(make_config(distil={"teacher": "t", "cache": "c"}), 2)
    with pytest.raises(ConfigError, match=r"lora\.base"):
        check_ranks(make_config(lora={"base": "b"}), 2)
    alone = Ranks()
    alone.shards = 3
    trainer = Trainer(make_config())
    with pytest.raises(ConfigError, match="4 experts"):
        alone.divide(trainer.objective.module)
    trainer.close()


def test_owners_share_the_work() -> None:
    sizes = {"a": 5, "b": 4, "c": 3, "d": 3, "e": 1}
    chosen = owners(sizes, 2)
    assert sorted(sum(sizes[n] for n in sizes if chosen[n] == rank) for rank in range(2)) == [8, 8]
