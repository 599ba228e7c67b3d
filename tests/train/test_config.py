"""The training config is strict, and overrides reach every key."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourfold.distil.config import load_distil_config
from fourfold.distil.student import training
from fourfold.errors import ConfigError
from fourfold.train.config import TrainConfig, load_config

ROOT = Path(__file__).parents[2]
SMALL = """
[model]
config = "config.json"
[data]
tokenizer = "tokenizer.json"
files = [{ path = "a.jsonl", weight = 2 }]
[run]
dir = "run"
steps = 10
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def test_defaults_and_round_trip(file: Path) -> None:
    config = load_config(file)
    assert config.data.files[0].weight == 2.0
    assert config.loss.mtp == 0.3
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_overrides(file: Path) -> None:
    config = load_config(
        file, ["optimizer.lr=1e-3", "run.dir=elsewhere", "run.compile=true", 'data.files=[{path="b.txt"}]']
    )
    assert config.optimizer.lr == 1e-3
    assert config.run.dir == "elsewhere" and config.run.compile
    assert config.data.files[0].path == "b.txt"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optimizer.wieght_decay=0.1", "wieght_decay"),
        ("optimiser.lr=0.1", "optimiser"),
        ("run.steps=2.5", "run.steps"),
        ("run.compile=1", "run.compile"),
        ("run.seconds=5", "run.seconds"),
        ("run.steps=0", "run.steps"),
        ("data.files=[]", "data.files"),
        ('data.files=[{path="a", weigth=1}]', "weigth"),
        ("schedule.warmup=2", "schedule.warmup"),
        ("schedule.kind=linear", "schedule.kind"),
        ("quantisation.experts=int4", "quantisation.experts"),
        ("data.batch_size=0", "data.batch_size"),
        ("optimizer.steps=[8]", "optimizer.steps"),
        ("run", "run"),
        ("run.dir.x=1", "run.dir"),
    ],
)
def test_what_is_wrong_is_named(file: Path, override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_config(file, [override])


def test_missing_key_and_file(file: Path, tmp_path: Path) -> None:
    file.write_text(SMALL.replace('dir = "run"', ""), encoding="utf-8")
    with pytest.raises(ConfigError, match="dir"):
        load_config(file)
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml")
    file.write_text("[model", encoding="utf-8")
    with pytest.raises(ConfigError, match="not TOML"):
        load_config(file)


def test_the_shipped_configs_are_valid() -> None:
    folder = Path(__file__).parents[2] / "models" / "train"
    for path in sorted(folder.glob("*.toml")):
        load_config(path)


def test_examples_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """And name files that are there, but for what an earlier example makes."""
    monkeypatch.chdir(ROOT)
    distil = load_distil_config("examples/distil.toml")
    student = training(distil, Path("data.jsonl"))
    runs = [load_config("examples/grpo.toml"), load_config("examples/distil/on_policy.toml")]
    named = [*distil.prompts.files, *distil.student.tasks, student.model.config]
    for config in runs:
        named += [config.model.config, config.data.tokenizer]
        named += [file.path for file in config.rollout.prompts]
        named += [file.path for file in config.data.held_out]
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert runs[1].model.init_from == f"{student.run.dir}/export"
