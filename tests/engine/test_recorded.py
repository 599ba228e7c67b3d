"""Decode steps that a device records.  Here a CPU that forgets what it computed while it recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fourfold
from fourfold import kernels
from fourfold.engine import recorded
from fourfold.engine.config import EngineConfig
from fourfold.engine.engine import Engine
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from fourfold.kernels import registry
from fourfold.kernels.recording import Recording
from fourfold.model.transformer import Transformer

PROMPTS = ("Once upon a time", "The", "A cat sat on the mat and then it went home again. " * 8)


class Recorder:
    """sizes: batch of each recording; replayed: how often any ran."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.replayed = 0
        self.memory: object = None
        self.problem: Exception | None = None

    def __call__(self, run: Callable[[], tuple[Tensor, ...]], beside: Recording | None) -> Recording:
        if self.problem is not None:
            raise self.problem
        if beside is None:
            self.memory = object()
        else:
            assert beside.memory is self.memory
        results = tuple(torch.full_like(result, torch.nan) for result in run())
        self.sizes.append(len(results[-1]))

        def replay() -> None:
            self.replayed += 1
            for result, new in zip(results, run(), strict=True):
                result.copy_(new)

        return Recording(results, replay, self.memory)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    kernels.discover("cpu")
    own = Recorder()
    monkeypatch.setitem(registry._RECORDERS, "cpu", own)
    return own


@pytest.fixture
def model(tiny_folder: Path) -> Transformer:
    return fourfold.load(tiny_folder)


def answers(model: Transformer, many: int) -> Iterator[str]:
    """Of requests that begin and end at different steps."""
    with Engine(model, EngineConfig(max_running=6, step_tokens=64, snapshots=4)) as engine:
        requests = [
            Request(prompt=PROMPTS[i % 3], max_tokens=5 + 3 * i, sampling=Sampling(temperature=0.0))
            for i in range(many)
        ]
        for answer in [engine.submit(request) for request in requests]:
            yield "".join(chunk.text for chunk in engine.chunks(answer))


def test_recorded_steps_say_the_same(model: Transformer, recorder: Recorder, monkeypatch) -> None:
    got = list(answers(model, 7))
    assert recorder.replayed > 10
    # As powers of two up to max_running, each once.
    assert sorted(recorder.sizes) == sorted(set(recorder.sizes)) and set(recorder.sizes) <= {1, 2, 4, 6}
    monkeypatch.delitem(registry._RECORDERS, "cpu")
    assert got == list(answers(model, 7))


def test_other_weights_are_recorded_anew(model: Transformer, recorder: Recorder) -> None:
    with Engine(model, EngineConfig(max_running=2, step_tokens=64)) as engine:
        request = Request(prompt="The", max_tokens=4, sampling=Sampling(temperature=0.0))
        first = [chunk.text for chunk in engine.stream(request)]
        model.assign("norm.weight", -model.norm.weight.detach())
        assert [chunk.text for chunk in engine.stream(request)] != first
    assert recorder.sizes == [1, 1]


def test_where_a_step_cannot_be_recorded_it_is_told_and_runs(
    model: Transformer, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder.problem = RuntimeError("107027: the host waits\nand more")
    got = list(answers(model, 2))
    assert recorder.replayed == 0
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "fourfold: decode steps are not recorded, every operation is launched by itself: "
        "107027: the host waits"
    ]
    recorder.problem = None
    assert got == list(answers(model, 2)) and recorder.replayed


def test_a_step_of_too_many_tokens_is_told_once_and_runs(
    model: Transformer,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    got = list(answers(model, 2))
    monkeypatch.setattr(recorded, "_MOST_TOKENS", 2048)
    recorder.sizes.clear()
    assert got == list(answers(model, 2)) and set(recorder.sizes) == {1}
    told = "fourfold: beyond 2,048 tokens (batch times longest sequence) decode steps are not recorded"
    assert capsys.readouterr().err.count(told) == 1


def test_streamed_experts_are_not_recorded(
    tiny_folder: Path, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    model = fourfold.load(tiny_folder, ram="1700KiB")
    assert len(list(answers(model, 2))) == 2 and not recorder.sizes
    assert "not recorded, every operation is launched by itself: routed experts" in capsys.readouterr().err
