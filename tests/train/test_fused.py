"""Training forms of operations against the reference: values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fourfold.kernels import reference
from fourfold.kernels.formats import Rounding
from fourfold.train.fused import Fused
from fourfold.train.sinkhorn import Sinkhorn

FUSED = Fused().operations
G = torch.Generator().manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G)


def same(
    ours: Callable[..., object], theirs: Callable[..., object], *inputs: object, **options: object
) -> None:
    """Equal outputs and equal gradients of every float input."""
    results = []
    for function in (ours, theirs):
        copies = [
            x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
            for x in inputs
        ]
        out = function(*copies, **options)
        outs = [o for o in (out if isinstance(out, tuple) else (out,)) if isinstance(o, Tensor)]
        weighted = [(o * torch.linspace(-1, 1, o.numel()).view(o.shape)).sum() for o in outs]
        torch.stack(weighted).sum().backward()
        results.append((outs, [c.grad for c in copies if isinstance(c, Tensor) and c.requires_grad]))
    for mine, reference_one in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(mine, reference_one, atol=2e-5, rtol=1e-4)
    for own, expected in zip(results[0][1], results[1][1], strict=True):
        if expected is not None:
            torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-3)


def test_sinkhorn() -> None:
    logits = random(2, 5, 4, 4) * 3
    same(lambda x: Sinkhorn.apply(x, 20, 1e-6), lambda x: reference._sinkhorn(x, 20, 1e-6), logits)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_hyper_connections(n: int) -> None:
    streams, width = random(2, 5, n, 8), (2 + n) * n
    entry = (random(width, n * 8), random(3), random(width), random(8))
    options = {"iters": 20, "norm_eps": 1e-6, "eps": 1e-6}
    way_out = (random(2, 5, 8), streams, random(2, 5, n), random(2, 5, n, n))

    def taken_apart(function: Callable[..., object]) -> Callable[..., object]:
        """`same` differentiates by tensors, so the entry comes last, tensor by tensor."""
        return lambda *inputs, **options: function(*inputs[:-4], inputs[-4:], **options)

    for name, inputs in (("hc_input", (streams,)), ("hc_next", way_out)):
        ours, theirs = taken_apart(FUSED[name]), taken_apart(getattr(reference, name))
        same(ours, theirs, *inputs, *entry, **options)
    same(FUSED["hc_post"], reference.hc_post, *way_out)
    head = (streams, random(n, n * 8), random(1), random(n))
    same(FUSED["hc_head"], reference.hc_head, *head, norm_eps=1e-6, eps=1e-6)


def test_experts() -> None:
    scores = torch.rand(13, 6, generator=G)
    indices = scores.topk(2).indices % 5  # expert 5 gets no token
    indices[:, 1] = (indices[:, 0] + 1) % 5
    matrices = (random(6, 16, 8), None, random(6, 16, 8), None, random(6, 8, 16), None)
    same(FUSED["experts"], reference.experts, random(13, 8), indices, random(13, 2), *matrices, 3.0, False)


def test_shared_expert() -> None:
    def taken_apart(function: Callable[..., object]) -> Callable[..., object]:
        return lambda x, *weights: function(x, tuple((w, None) for w in weights), 3.0, Rounding.NONE)

    ours, theirs = taken_apart(FUSED["shared_expert"]), taken_apart(reference.shared_expert)
    same(ours, theirs, random(13, 8), random(16, 8), random(16, 8), random(8, 16))


@pytest.mark.parametrize("inverse", [False, True])
def test_rope(inverse: bool) -> None:
    angles = torch.rand(2, 5, 3, generator=G)
    for x in (random(2, 5, 4, 10), random(2, 5, 10)):
        same(
            lambda x: FUSED["rope"](x, angles.cos(), angles.sin(), inverse),
            lambda x: reference.rope(x, angles.cos(), angles.sin(), inverse),
            x,
        )


def test_norm_and_linear() -> None:
    same(FUSED["rms_norm"], reference.rms_norm, random(3, 8), random(8), 1e-6)
    same(FUSED["rms_norm"], reference.rms_norm, random(3, 8), None, 1e-6)
    same(FUSED["linear"], reference.linear, random(3, 8), random(5, 8), None)
    same(FUSED["grouped_linear"], reference.grouped_linear, random(3, 2, 8), random(10, 8), None, 2)


@pytest.mark.parametrize("entries", ["none", "ranged", "chosen"])
def test_sparse_attention(entries: str) -> None:
    t = torch.arange(7)
    window = torch.stack([(t - 3).clamp_min(0), t + 1], dim=-1).expand(2, 7, 2)
    seen = torch.stack([torch.zeros_like(t), (t + 1) // 2], dim=-1).expand(2, 7, 2)
    chosen = torch.where(t[:, None] > torch.arange(2), torch.arange(2), -1).expand(2, 7, 2)
    compressed = {
        "none": (None, None, None),
        "ranged": (random(2, 3, 8), seen, None),
        "chosen": (random(2, 3, 8), seen, chosen),
    }[entries]
    inputs = (random(2, 7, 4, 8), random(2, 7, 8), window, *compressed, random(4), 8**-0.5)
    same(FUSED["sparse_attention"], reference.sparse_attention, *inputs)
