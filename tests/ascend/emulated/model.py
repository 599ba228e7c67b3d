"""Run by test_emulated.py: the whole model on npu:0 of an emulated generation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import fourfold
from fourfold import kernels
from fourfold.engine.config import EngineConfig
from fourfold.engine.engine import Engine
from fourfold.engine.recorded import RecordedSteps
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from fourfold.kernels import registry
from fourfold.model.paged_layout import Span
from fourfold.model.transformer import Transformer

GOLDEN = Path(fourfold.__file__).parent / "conformance" / "golden"
BOUND = 1e-4  # of the logits' standard deviation, as on the CPU
STEPS = 8  # of the 24 that the vectors have; tests/model runs all of them


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with safe_open(GOLDEN / "expected.safetensors", "pt") as file:
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return values | {
            name: torch.tensor(json.loads(v)) for name, v in file.metadata().items() if v.isdigit()
        }


@pytest.fixture(scope="module")
def model() -> Transformer:
    return fourfold.load(GOLDEN, device="npu")


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.cpu() - expected).abs().max() / expected.std())


def test_golden_vectors(model: Transformer, golden: dict[str, Tensor]) -> None:
    ids, expected, prefill = golden["input_ids"].to("npu"), golden["logits"], int(golden["prefill"])
    cache = model.new_cache()
    out = model(ids[:, :prefill], cache=cache)
    assert relative(out.logits[:, -1], expected[:, 0]) < BOUND
    for step in range(STEPS):
        here = prefill + step
        out = model(ids[:, here : here + 1], cache=cache, mtp=step == 0)
        assert relative(out.logits[:, -1], expected[:, step + 1]) < BOUND
        if step == 0:
            assert out.mtp_logits is not None
            assert relative(out.mtp_logits[:, -1], golden["mtp_logits"]) < BOUND


def test_sequences_in_one_pass_are_as_alone(model: Transformer, golden: dict[str, Tensor]) -> None:
    sizes = [5, 23]
    rows = [golden["input_ids"][0, :n].to("npu") for n in sizes]
    cache = model.new_paged_cache(slots=2, blocks=2, call_tokens=28)
    for slot in (0, 1):
        cache.assign(slot, [1 - slot])
    spans = [Span(slot, 0, new) for slot, new in enumerate(sizes)]
    together = model.paged(torch.cat(rows), spans, cache, torch.arange(28, device="npu")).split(sizes)
    for row, logits in zip(rows, together, strict=True):
        alone = model(row[None], cache=model.new_cache()).logits[0].cpu()
        assert relative(logits, alone) < BOUND


@pytest.mark.parametrize("numerics", ["exact", "deployed", "fast"])
def test_the_shipped_model_says_the_same_as_on_the_cpu(numerics: str) -> None:
    prompt = "Once upon a time"
    texts = []
    for device in ("cpu", "npu"):
        m = fourfold.load(fourfold.shipped_model(), device=device, numerics=numerics)
        texts.append("".join(fourfold.generate(m, prompt, max_tokens=6, temperature=0.0)))
    assert texts[0] == texts[1] != ""


def answers(model: Transformer) -> list[str]:
    """Of nine requests, of which the last waits for a place."""
    with Engine(model, EngineConfig(max_running=8, step_tokens=64, snapshots=0)) as engine:
        requests = [
            Request(prompt=[2 + i, 5, 9], max_tokens=4 + i % 3, sampling=Sampling(temperature=0.0))
            for i in range(9)
        ]
        return [
            "".join(chunk.text for chunk in engine.chunks(answer))
            for answer in [engine.submit(request) for request in requests]
        ]


@pytest.mark.parametrize("numerics", ["exact", "deployed", "fast"])
def test_captured_steps_say_the_same_as_eager_ones(
    numerics: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = fourfold.load(fourfold.shipped_model(), device="npu", numerics=numerics)
    sizes: list[tuple[int, int]] = []
    size_of = RecordedSteps._size

    def noted(*arguments: Any) -> tuple[int, int]:
        sizes.append(size_of(*arguments))
        return sizes[-1]

    monkeypatch.setattr(RecordedSteps, "_size", noted)
    captured = answers(model)
    assert {(8, 2048), (1, 2048)} <= set(sizes) and len(sizes) > len(set(sizes))
    assert "not recorded" not in capsys.readouterr().err
    monkeypatch.delitem(registry._RECORDERS, "npu")
    assert captured == answers(model)


def test_a_kernel_that_waits_is_told_and_runs(capsys: pytest.CaptureFixture[str]) -> None:
    def waits(run: Callable[..., Any]) -> Callable[..., Any]:
        def rms_norm(x: Tensor, *arguments: Any) -> Tensor:
            assert x.abs().max().item() >= 0
            return run(x, *arguments)

        return rms_norm

    model = fourfold.load(fourfold.shipped_model(), device="npu")
    expected = list(fourfold.generate(model, [3, 4, 5], max_tokens=4, temperature=0.0))
    capsys.readouterr()
    with kernels.observed("npu", {"rms_norm": waits}):
        assert list(fourfold.generate(model, [3, 4, 5], max_tokens=4, temperature=0.0)) == expected
    told = capsys.readouterr().err
    assert "decode steps are not recorded, every operation is launched by itself" in told, told
    assert "107027" in told
