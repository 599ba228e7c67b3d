"""The published reference's numbers on the golden checkpoint, float32, nothing rounded.

The bound is 1e-4 of the logits' standard deviation; the reference's own prefill and decode differ by 4e-6 of
it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import fourfold
from fourfold.model.transformer import Transformer

GOLDEN = Path(fourfold.__file__).parent / "conformance" / "golden"
BOUND = 1e-4


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with safe_open(GOLDEN / "expected.safetensors", "pt") as file:
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        values |= {name: torch.tensor(json.loads(v)) for name, v in file.metadata().items() if v.isdigit()}
    return values


@pytest.fixture(scope="module")
def model() -> Transformer:
    return fourfold.load(GOLDEN)


def relative(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.std())


def test_prefill_then_every_decode_step_and_the_mtp_guess(
    model: Transformer, golden: dict[str, Tensor]
) -> None:
    ids, expected, prefill = golden["input_ids"], golden["logits"], int(golden["prefill"])
    cache = model.new_cache()
    out = model(ids[:, :prefill], cache=cache, hidden_states=True)
    assert relative(out.logits[:, -1], expected[:, 0]) < BOUND
    assert out.hidden_states is not None
    for k, streams in enumerate(out.hidden_states):
        assert relative(streams[:, -8:], golden[f"hidden.{k}"]) < BOUND
    for step in range(int(golden["steps"])):
        here = prefill + step
        out = model(ids[:, here : here + 1], cache=cache, mtp=step == 0)
        assert relative(out.logits[:, -1], expected[:, step + 1]) < BOUND
        if step == 0:
            assert out.mtp_logits is not None
            assert relative(out.mtp_logits[:, -1], golden["mtp_logits"]) < BOUND


def test_whole_sequence_without_a_cache(model: Transformer, golden: dict[str, Tensor]) -> None:
    prefill = int(golden["prefill"])
    out = model(golden["input_ids"], mtp=True)
    assert relative(out.logits[:, prefill - 1 :], golden["logits"]) < BOUND
    assert out.mtp_logits is not None
    assert relative(out.mtp_logits[:, prefill - 1], golden["mtp_logits"]) < BOUND


def test_a_wrong_weight_is_seen(golden: dict[str, Tensor]) -> None:
    """The bound is tight enough to notice one scale of one expert block that is off by a factor of two."""
    model = fourfold.load(GOLDEN)
    scale = model.get_parameter("layers.2.ffn.shared_experts.w2.scale").data
    scale.view(torch.uint8)[0, 0] += 1
    out = model(golden["input_ids"])
    assert relative(out.logits[:, int(golden["prefill"]) - 1 :], golden["logits"]) > 10 * BOUND
