"""What a text says of the inputs of each matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fourfold
from fourfold.calibration import calibrate
from fourfold.config import ModelConfig
from fourfold.errors import RequestError
from fourfold.kernels import reference
from fourfold.model.moe import MoE
from fourfold.weights.export import export_checkpoint
from fourfold.weights.names import checkpoint_spec

TEXT = "once upon a time there was a cat, and a house by the sea. " * 8


@pytest.fixture(scope="module")
def found(tiny_folder: Path):
    return calibrate(tiny_folder, TEXT, progress=False)


def test_every_matrix_that_ran_has_its_inputs(tiny_folder, found):
    spec = checkpoint_spec(ModelConfig.from_file(tiny_folder))
    linears = {
        name for name, s in spec.items() if s.kind == "linear" and not name.endswith("attn.wo_a.weight")
    }
    assert linears <= found.importance.keys()
    for name, importance in found.importance.items():
        assert importance.shape == (spec[name].shape[1],), name
        assert (importance >= 0).all() and importance.isfinite().all(), name
    experts = {name for name in found.importance if ".ffn.experts." in name and name.endswith("w1.weight")}
    total = sum(".ffn.experts." in name and name.endswith("w1.weight") for name in spec)
    assert found.unmet == total - len(experts)
    assert found.tokens > 100


def test_they_are_the_mean_squares(tiny_folder, found):
    """Against what one layer is seen to choose, the whole text in one call."""
    model = fourfold.load(tiny_folder)
    layer = model.get_submodule("layers.3.ffn")
    assert isinstance(layer, MoE)
    layer.train()  # part by part, so that hooks are called
    seen: dict[str, Any] = {}
    for name, module in (("experts", layer.experts), ("shared_experts", layer.shared_experts)):
        module.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args))
    assert model.tokenizer is not None
    with torch.no_grad():
        model(torch.tensor([[model.config.bos_token_id, *model.tokenizer.encode(TEXT)]]))
    x = seen["shared_experts"][0]
    expected = x.square().mean(0)
    torch.testing.assert_close(
        found.importance["layers.3.ffn.shared_experts.w1.weight"], expected, rtol=1e-3, atol=1e-5
    )
    asked = seen["experts"][0]
    x, indices, weights = asked.x, asked.indices, asked.weights
    expert = int(indices.flatten().mode().values)
    token, choice = (indices == expert).nonzero(as_tuple=True)
    stack = layer.experts
    gate, up = (
        reference.linear(x[token], w.weight[expert], None if w.scale is None else w.scale[expert])
        for w in (stack.w1, stack.w3)
    )
    inner = reference.swiglu(gate, up, model.config.swiglu_limit) * weights[token, choice, None]
    for leaf, rows in (("w1", x[token]), ("w2", inner)):
        got = found.importance[f"layers.3.ffn.experts.{expert}.{leaf}.weight"]
        torch.testing.assert_close(got, rows.square().mean(0), rtol=1e-3, atol=1e-5)


def test_streamed_experts_say_the_same(tiny_folder, found, monkeypatch):
    def load(folder: Path) -> fourfold.Transformer:
        return fourfold.load(folder, ram="1700KiB")

    monkeypatch.setattr("fourfold.calibration.load", load)
    again = calibrate(tiny_folder, TEXT, progress=False)
    assert again.importance.keys() == found.importance.keys()
    for name, importance in again.importance.items():
        torch.testing.assert_close(importance, found.importance[name], rtol=1e-4, atol=1e-7)


def test_a_text_and_a_tokenizer_are_needed(tiny_folder, tmp_path: Path):
    with pytest.raises(RequestError, match="the text to calibrate with is empty"):
        calibrate(tiny_folder, "", progress=False)
    bare = export_checkpoint(tiny_folder, tmp_path / "bare", progress=False)
    (bare / "tokenizer.json").unlink()
    with pytest.raises(RequestError, match=r"bare has no tokenizer\.json"):
        calibrate(bare, TEXT, progress=False)
