"""Muon against an SVD, and the optimisers' rules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fourfold.train.config import OptimizerSection
from fourfold.train.optim import AdamW, Muon, Optimizer, is_matrix, orthogonalise


@pytest.mark.parametrize("shape", [(32, 32), (16, 48), (48, 16), (3, 24, 40), (2, 40, 24)])
def test_orthogonalise_is_the_polar_factor(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(shape, generator=generator)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonalise(matrices, dtype=torch.float32)
    assert found.shape == matrices.shape
    assert (found - u @ vh).abs().max() < 0.02
    assert torch.linalg.svdvals(found).sub(1).abs().max() < 0.02


def test_orthogonalise_in_bf16_is_close() -> None:
    matrix = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalise(matrix).float())
    assert values.sub(1).abs().max() < 0.05


def test_orthogonalise_of_zero_is_zero() -> None:
    assert orthogonalise(torch.zeros(8, 8)).abs().max() == 0


def test_each_expert_is_its_own_matrix() -> None:
    generator = torch.Generator().manual_seed(2)
    stacked, settings = torch.randn(4, 16, 24, generator=generator), OptimizerSection()
    gradient = torch.randn(4, 16, 24, generator=generator)
    together = {"experts": nn.Parameter(stacked.clone())}
    together["experts"].grad = gradient.clone()
    alone = {str(i): nn.Parameter(stacked[i].clone()) for i in range(4)}
    for i in range(4):
        alone[str(i)].grad = gradient[i].clone()
    Muon(together, settings).step(0.01)
    Muon(alone, settings).step(0.01)
    for i in range(4):
        torch.testing.assert_close(together["experts"][i], alone[str(i)], atol=1e-5, rtol=1e-4)


def test_muon_follows_the_equations() -> None:
    settings = OptimizerSection(steps=(8, 2))
    weight = nn.Parameter(torch.randn(12, 20, generator=torch.Generator().manual_seed(3)))
    start, momentum = weight.detach().clone(), torch.zeros(12, 20)
    muon = Muon({"w": weight}, settings)
    expected = start
    for seed in range(3):
        gradient = torch.randn(12, 20, generator=torch.Generator().manual_seed(10 + seed))
        weight.grad = gradient.clone()
        muon.step(0.02)
        momentum = 0.95 * momentum + gradient
        update = orthogonalise(0.95 * momentum + gradient).float() * 20**0.5 * 0.18
        expected = expected * (1 - 0.02 * 0.1) - 0.02 * update
        torch.testing.assert_close(weight.detach(), expected, atol=1e-6, rtol=1e-5)


def test_adamw_agrees_with_torch() -> None:
    settings = OptimizerSection(weight_decay=0.1, eps=1e-8)
    ours = nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(4)))
    theirs = nn.Parameter(ours.detach().clone())
    mine = AdamW({"w": ours}, settings)
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for seed in range(4):
        gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step(0.01)
        reference.step()
        torch.testing.assert_close(ours, theirs)


def test_parameters_are_divided_by_kind() -> None:
    matrix, vector = torch.zeros(4, 4), torch.zeros(4)
    assert is_matrix("layers.0.attn.wq_a.weight", matrix)
    assert is_matrix("layers.0.ffn.experts.w1.weight", torch.zeros(2, 4, 4))
    assert not is_matrix("embed.weight", matrix)
    assert not is_matrix("head.weight", matrix)
    assert not is_matrix("layers.2.attn.compressor.ape", matrix)
    assert not is_matrix("norm.weight", vector)


def test_clipping_limits_the_whole_gradient() -> None:
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([30.0, 40.0, 0.0])
    optimizer = Optimizer([("norm.weight", weight)], OptimizerSection(clip=1.0, adamw_lr=1.0))
    assert optimizer.step(1.0) == pytest.approx(50.0)
    assert optimizer.adamw.first["norm.weight"].norm() == pytest.approx(0.1)
    assert weight.grad is None


def test_state_round_trip_continues_identically() -> None:
    def run(steps: range, optimizer: Optimizer, weight: nn.Parameter) -> None:
        for seed in steps:
            weight.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))
            optimizer.step(1.0)

    settings = OptimizerSection()
    whole = nn.Parameter(torch.ones(8, 8))
    run(range(6), Optimizer([("w", whole)], settings), whole)
    first = nn.Parameter(torch.ones(8, 8))
    optimizer = Optimizer([("w", first)], settings)
    run(range(3), optimizer, first)
    second = nn.Parameter(first.detach().clone())
    resumed = Optimizer([("w", second)], settings)
    resumed.load({name: value.clone() for name, value in optimizer.state().items()})
    run(range(3, 6), resumed, second)
    assert torch.equal(whole, second)
