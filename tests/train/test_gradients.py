"""Derivatives that are written out, or pass through something that is not smooth, against finite differences.

In float64 by torch's gradcheck where an operation keeps that type; where it computes in float32, the slope in
random directions, whose central difference is exact to about a thousandth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fourfold.train.config import TrainConfig
from fourfold.train.data import IGNORE
from fourfold.train.divergence import Divergence, head_divergence
from fourfold.train.experts import arrange, by_expert
from fourfold.train.fused import Fused, every_visible, swiglu
from fourfold.train.losses import head_cross_entropy, sequence_balance
from fourfold.train.optim import orthogonalise
from fourfold.train.quantise import ROUNDINGS, rounded_weights
from fourfold.train.sinkhorn import Sinkhorn
from fourfold.train.trainer import Trainer

FUSED = Fused().operations
STEP = 1e-2
MIXING: dict[str, Any] = {"iters": 20, "norm_eps": 1e-6, "eps": 1e-6}


@pytest.fixture
def random() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator, dtype=dtype)


def check_slopes(function: Callable[..., Tensor | tuple[Tensor, ...]], *inputs: Tensor) -> None:
    """The slope of a weighted sum of all outputs, along two directions of each input and one of all."""

    def value(*points: Tensor) -> Tensor:
        results = function(*points)
        results = results if isinstance(results, tuple) else (results,)
        return torch.stack(
            [(r * torch.linspace(-1, 1, r.numel()).view(r.shape)).sum() for r in results]
        ).sum()

    leaves = [x.clone().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(value(*leaves), leaves)
    generator = torch.Generator().manual_seed(1)
    ways = [torch.randn(x.shape, generator=generator) for x in inputs]
    size = max(float(torch.stack([g.norm() for g in gradients]).norm()), 1e-3)
    for moved in [*({i} for i in range(len(inputs))), set(range(len(inputs)))]:
        steps = [w * STEP / w.norm() if i in moved else torch.zeros_like(w) for i, w in enumerate(ways)]
        with torch.no_grad():
            ahead = value(*(x + s for x, s in zip(inputs, steps, strict=True))).double()
            behind = value(*(x - s for x, s in zip(inputs, steps, strict=True))).double()
        expected = sum(float((g * s).sum()) for g, s in zip(gradients, steps, strict=True))
        assert float(ahead - behind) / 2 == pytest.approx(expected, rel=1e-2, abs=2e-3 * STEP * size), moved


def test_sinkhorn(random: Callable[..., Tensor]) -> None:
    logits = random(3, 4, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Sinkhorn.apply(x, 20, 1e-6), logits)


def test_experts(random: Callable[..., Tensor]) -> None:
    """All five inputs; one expert gets no token."""

    def smooth(gate: Tensor, up: Tensor, limit: float) -> Tensor:
        return torch.nn.functional.silu(gate) * up

    at = arrange(torch.tensor([0, 2, 2, 0, 3, 2, 0, 3]), 4)
    shapes = ((4, 6), (8,), (4, 5, 6), (4, 5, 6), (4, 6, 5))
    inputs = [random(*shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(lambda *x: by_expert(x[0], x[1], at, *x[2:], 3.0, smooth), inputs)


def test_swiglu_is_flat_beyond_its_clamp(random: Callable[..., Tensor]) -> None:
    check_slopes(lambda gate, up: swiglu(gate, up, 5.0), random(4, 6), random(4, 6))
    gate, up = torch.full((2,), 4.0, requires_grad=True), torch.full((2,), -4.0, requires_grad=True)
    swiglu(gate, up, 3.0).sum().backward()
    assert gate.grad is not None and up.grad is not None and not gate.grad.any() and not up.grad.any()


def test_hyper_connections(random: Callable[..., Tensor]) -> None:
    n, entry = 4, (random(24, 32) * 0.2, random(3), random(24), random(8))
    check_slopes(lambda x, *entry: FUSED["hc_input"](x, entry, **MIXING), random(2, 3, n, 8), *entry)
    leaving = (random(2, 3, 8), random(2, 3, n, 8), random(2, 3, n), random(2, 3, n, n))
    check_slopes(FUSED["hc_post"], *leaving)
    check_slopes(lambda *x: FUSED["hc_next"](*x[:4], x[4:], **MIXING), *leaving, *entry)
    head = (random(2, 3, n, 8), random(n, 32) * 0.2, random(1), random(n))
    check_slopes(lambda *x: FUSED["hc_head"](*x, norm_eps=1e-6, eps=1e-6), *head)


def test_norm_rope_and_projections(random: Callable[..., Tensor]) -> None:
    check_slopes(lambda x, w: FUSED["rms_norm"](x, w, 1e-6), random(3, 8), random(8))
    angles = random(2, 5, 3)
    check_slopes(lambda x: FUSED["rope"](x, angles.cos(), angles.sin(), False), random(2, 5, 4, 10))
    check_slopes(lambda x, w: FUSED["linear"](x, w, None), random(3, 8), random(5, 8))
    check_slopes(lambda x, w: FUSED["grouped_linear"](x, w, None, 2), random(3, 2, 8), random(10, 8))


def test_attention(random: Callable[..., Tensor]) -> None:
    t = torch.arange(7)
    window = torch.stack([(t - 3).clamp_min(0), t + 1], dim=-1).expand(2, 7, 2)
    seen = torch.stack([torch.zeros_like(t), (t + 1) // 2], dim=-1).expand(2, 7, 2)
    chosen = every_visible(random(2, 7, 1), random(1), random(2, 3, 1), seen, 3)
    shapes = ((2, 7, 4, 8), (2, 7, 8), (2, 3, 8), (4,))
    check_slopes(
        lambda q, kv, entries, sink: FUSED["sparse_attention"](
            q, kv, window, entries, seen, chosen, sink, 8**-0.5
        ),
        *(random(*shape) for shape in shapes),
    )


def test_losses(random: Callable[..., Tensor]) -> None:
    targets = torch.tensor([[1, 4, IGNORE, 0], [2, IGNORE, 3, 3]])
    hidden, head = random(2, 4, 6), random(5, 6)
    check_slopes(lambda x, w: head_cross_entropy(x, w, targets, torch.float32), hidden, head)
    scores, indices = random(8, 4).abs() + 0.1, torch.tensor([[0, 1], [2, 1]] * 4)
    check_slopes(lambda s: sequence_balance(s, indices, 2), scores)


@pytest.mark.parametrize(("reverse", "top_k"), [(False, 0), (True, 0), (False, 2), (True, 2)])
def test_divergence(random: Callable[..., Tensor], reverse: bool, top_k: int) -> None:
    divergence = Divergence(share=0.7, reverse=reverse, top_k=top_k, temperature=1.5)
    targets = torch.tensor([[1, 4, IGNORE, 0]])
    theirs, their_head = random(1, 4, 3), random(5, 3)
    check_slopes(
        lambda x, w: head_divergence(x, w, theirs, their_head, targets, divergence, torch.float32)[0],
        random(1, 4, 6),
        random(5, 6),
    )


@pytest.mark.parametrize("form", ["fp4", "fp8", "bf16"])
def test_rounding_passes_the_gradient_at_the_rounded_weight(random: Callable[..., Tensor], form: str) -> None:
    """Straight through: the slope of the loss where the exported weight is, applied to the master."""
    weight, x = nn.Parameter(random(8, 32)), random(4, 32)

    def loss(at: Tensor) -> Tensor:
        return (x @ at.mT).tanh().sum()

    with rounded_weights({"w": weight}, {"w": form}):
        loss(weight).backward()
    rounded = ROUNDINGS[form](weight.detach())
    assert not torch.equal(rounded, weight)
    (expected,) = torch.autograd.grad(loss(moved := rounded.clone().requires_grad_()), moved)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, expected)
    check_slopes(loss, rounded)


def test_a_whole_model(make_config: Callable[..., TrainConfig]) -> None:
    """The slope of the training loss along the gradient of each kind of parameter, routing held fixed."""
    trainer = Trainer(make_config(loss={"mtp": 0.3, "balance": 0.01}))
    batch = trainer.data.next()
    trainer.objective.loss(batch, 0.0, 0)[0].backward()
    kinds = (
        "experts.w1",
        "experts.w2",
        "hc_attn_fn",
        "hc_ffn_base",
        "wq_b",
        "wkv",
        "wo_a",
        "embed",
        "head.weight",
    )

    def along(parameters: Mapping[str, nn.Parameter], sign: float) -> float:
        with torch.no_grad():
            for parameter in parameters.values():
                assert parameter.grad is not None
                parameter.add_(parameter.grad, alpha=sign * 2e-3 / norm)
            return trainer.objective.loss(batch, 0.0, 0)[0].item()

    for kind in kinds:
        chosen = {n: p for n, p in trainer.parameters.items() if kind in n and p.grad is not None}
        norm = float(torch.stack([p.grad.norm() for p in chosen.values() if p.grad is not None]).norm())
        ahead, behind = along(chosen, 1.0), along(chosen, -2.0)
        along(chosen, 1.0)
        assert (ahead - behind) / 4e-3 == pytest.approx(norm, rel=0.03), kind
    trainer.close()


def test_muon_reaches_every_direction_that_has_a_thousandth(random: Callable[..., Tensor]) -> None:
    """Eight steps multiply a small singular value by 3.4445 each, 20,000 in all, so that one of a thousandth
    of the norm ends where the two settling steps, which square the error, take it to 1."""
    u, _, vh = torch.linalg.svd(random(24, 40), full_matrices=False)
    values = torch.logspace(0, -3, 24)
    found = orthogonalise(u * (values / values.norm()) @ vh, dtype=torch.float32)
    assert torch.linalg.svdvals(found).sub(1).abs().max() < 0.03
    assert (found - u @ vh).norm() / (u @ vh).norm() < 0.03
