"""How far a student's next-token distributions are from a teacher's, never with all logits of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.train.data import IGNORE
from fourfold.train.losses import UNIT

CHUNK_LOGITS = 1 << 23
"""Logits of each model that exist at once: 32 MiB of float32."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """What a position costs: share * KL + (1 - share) * cross-entropy with the token that follows.

    reverse: KL(student || teacher), which prefers what the teacher finds likely, and not KL(teacher ||
    student), which leaves out nothing that the teacher finds likely.
    top_k: only the teacher's k most likely tokens count one by one, all others as one; 0 is the whole
    vocabulary.
    temperature: divides the logits of both in the KL, which is multiplied by its square, so that gradients
    keep their size.  Hinton et al. 2015.
    """

    share: float
    reverse: bool
    top_k: int
    temperature: float

    def rows(self, student: Tensor, teacher: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """student, teacher [N, V] f32 logits, targets [N] int64 -> cost, KL and cross-entropy, [N] f32."""
        entropy = F.cross_entropy(student, targets, reduction="none")
        mine = (student / self.temperature).log_softmax(-1)
        theirs = (teacher / self.temperature).log_softmax(-1)
        if self.top_k:
            best = theirs.topk(self.top_k, dim=-1).indices
            mine, theirs = _with_rest(mine.gather(-1, best)), _with_rest(theirs.gather(-1, best))
        weight, gap = (mine, mine - theirs) if self.reverse else (theirs, theirs - mine)
        kl = (weight.exp() * gap).sum(-1) * self.temperature**2
        return self.share * kl + (1.0 - self.share) * entropy, kl, entropy


def _with_rest(logp: Tensor) -> Tensor:
    """[N, K] log-probabilities and, as one more, that of all others."""
    rest = torch.log((1.0 - logp.exp().sum(-1, keepdim=True)).clamp_min(1e-9))
    return torch.cat([logp, rest], dim=-1)


def padded(rows: Tensor) -> Tensor:
    """Zeros below [n, D], to a multiple of UNIT: oneDNN takes far longer for shapes it has not seen."""
    return F.pad(rows, (0, 0, 0, -len(rows) % UNIT))


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows [n, D] @ weight [D, O]."""
    return (padded(rows) @ weight)[: len(rows)]


RowCosts = Callable[[Tensor, slice], Tensor]
"""Logits [n, V] f32 of some rows, and which -> [k, n] f32: what each costs, and k - 1 figures to report."""


class _HeadCost(torch.autograd.Function):
    """Sums over the rows of what `costs` gives; the gradients are computed in the forward pass."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, x: Tensor, weight: Tensor, costs: RowCosts, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        low = weight.to(dtype)
        sums: Tensor | None = None
        grad_x = torch.empty_like(x, dtype=dtype)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        size = max(1, CHUNK_LOGITS // len(weight))
        # At least one part: without rows the sums are 0 all the same.
        for part in map(partial(slice), range(0, max(len(x), 1), size), range(size, len(x) + size + 1, size)):
            rows = x[part].to(dtype)
            with torch.enable_grad():
                logits = product(rows, low.mT).float().requires_grad_()
                found = costs(logits, part)
                (grad,) = torch.autograd.grad(found[0].sum(), logits)
            own = found.detach().sum(-1)
            sums = own if sums is None else sums + own
            grad = grad.to(dtype)
            grad_x[part] = product(grad, low)
            grad_weight += padded(grad).mT @ padded(rows)
        assert sums is not None
        ctx.save_for_backward(grad_x, grad_weight)
        ctx.mark_non_differentiable(sums)
        return sums[0].clone(), sums

    @staticmethod
    def backward(ctx, upstream: Tensor, unused: Tensor):  # type: ignore[no-untyped-def]
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x.float() * upstream, grad_weight * upstream, None, None


def head_cost(x: Tensor, weight: Tensor, costs: RowCosts, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sum of the first of `costs` over the rows x [N, D] of the head's input, and of all of them, [k] f32.

    weight [V, D] f32; dtype: of the products.  Only the first sum has a gradient.  Neither all logits nor
    their gradients exist at once.
    """
    total, sums = _HeadCost.apply(x, weight, costs, dtype)  # type: ignore[no-untyped-call]
    return total, sums


def head_divergence(
    hidden: Tensor,
    weight: Tensor,
    theirs: Tensor,
    their_head: Tensor,
    targets: Tensor,
    divergence: Divergence,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cost, KL and cross-entropy in nats over the positions that have a target, from both heads' inputs.

    hidden [B, T, D] floating, weight [V, D] f32; theirs [B, T, D'], their_head [V', D'] of the teacher; the
    first min(V, V') tokens are compared, as a vocabulary is padded differently in different models.
    targets [B, T] int64 with IGNORE;  returns three scalars f32, of which the first has a gradient.
    """
    wanted = targets.flatten() != IGNORE
    both = min(len(weight), len(their_head))
    rows, head = theirs.flatten(0, 1)[wanted], their_head[:both].to(dtype)
    chosen = targets.flatten()[wanted]

    def costs(logits: Tensor, part: slice) -> Tensor:
        teacher = product(rows[part].to(dtype), head.mT).float()
        return torch.stack(divergence.rows(logits, teacher, chosen[part]))

    total, sums = head_cost(hidden.flatten(0, 1)[wanted], weight[:both], costs, dtype)
    count = max(len(chosen), 1)
    return total / count, sums[1] / count, sums[2] / count
