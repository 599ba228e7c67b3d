"""What `plan` says that training an adapter takes is what it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fourfold import kernels
from fourfold.kernels.reference import swiglu
from fourfold.loading import load
from fourfold.model.adapters import AdaptedOperations, Adapter, LowRank
from fourfold.model.numerics import Numerics
from fourfold.plan import Demand, find_model, lora_memory
from fourfold.plan.lora import block_bytes
from fourfold.train.frozen import FrozenProducts
from fourfold.train.fused import Fused
from fourfold.train.lora import LoraWeights
from fourfold.weights.adapter import targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_keeps_what_the_formula_says(tiny_folder: Path, dtype: torch.dtype) -> None:
    model, length, rank = load(tiny_folder).requires_grad_(False), 96, 4
    model.numerics = Numerics("training", dtype)
    weights = LoraWeights(targets(model.config, ("layers.*",)), rank, 0, "")
    low = {f"{name}.weight": LowRank(a, b, 1.0) for name, (a, b) in weights.matrices().items()}
    adapted = AdaptedOperations([(None, Adapter(low, "").on(model))], gated=swiglu)
    operations = Fused().operations | FrozenProducts(torch.device("cpu"), dtype).operations
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *weights.parameters())}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            saved[place] = tensor
        return tensor

    ids = torch.arange(2 * length).view(2, length)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        kernels.replaced("cpu", operations),
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    ):
        model.hidden(ids, torch.zeros_like(ids), operations=adapted)
    found = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    said = block_bytes(model.config, length, rank, half=dtype != torch.float32)
    assert found / ids.numel() / len(model.layers) == pytest.approx(said, rel=0.1)


def test_the_base_stays_packed_and_recomputing_keeps_streams_alone() -> None:
    demand = find_model("flash")
    patterns = ("*.attn.*",)
    places = targets(demand.config, patterns)
    given = {"rank": 16, "rows": 1, "length": 2048}
    whole, less = (lora_memory(demand, patterns, recompute=again, **given) for again in (False, True))
    assert whole.base == demand.total_bytes < demand.parameters_total
    assert less.activations < whole.activations / 20
    assert whole.parameters == sum(16 * (place.out + place.width) for place in places.values())
    assert whole.adapter == 16 * whole.parameters
    assert whole.total == whole.to_json()["total"]
    assert "base 148." in str(whole)


def test_experts_count_one_by_one(tiny_folder: Path) -> None:
    demand = Demand.of(find_model(str(tiny_folder)).config)
    one = ("layers.0.ffn.experts.w1",)
    found = lora_memory(demand, one, rank=2, rows=1, length=8, recompute=True)
    assert found.parameters == demand.config.n_routed_experts * 2 * (64 + 128)
