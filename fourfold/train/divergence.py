"""How far a student's next-token distributions are from a teacher's, never with all logits of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.train.data import IGNORE

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


class _HeadDivergence(torch.autograd.Function):
    """Sums over the rows of cost, KL and cross-entropy; the gradients are computed in the forward pass."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        x: Tensor,
        weight: Tensor,
        theirs: Tensor,
        their_head: Tensor,
        targets: Tensor,
        divergence: Divergence,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        low, head = weight.to(dtype), their_head.to(dtype)
        sums = torch.zeros(3, device=x.device)
        grad_x = torch.empty_like(x, dtype=dtype)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        size = max(1, CHUNK_LOGITS // len(weight))
        for part in map(partial(slice), range(0, len(x), size), range(size, len(x) + size, size)):
            rows = x[part].to(dtype)
            teacher = (theirs[part].to(dtype) @ head.mT).float()
            with torch.enable_grad():
                logits = (rows @ low.mT).float().requires_grad_()
                cost, kl, entropy = divergence.rows(logits, teacher, targets[part])
                (grad,) = torch.autograd.grad(cost.sum(), logits)
            sums += torch.stack([cost.sum(), kl.sum(), entropy.sum()]).detach()
            grad = grad.to(dtype)
            grad_x[part] = grad @ low
            grad_weight += grad.mT @ rows
        ctx.save_for_backward(grad_x, grad_weight)
        ctx.mark_non_differentiable(sums[1], sums[2])
        return sums[0], sums[1], sums[2]

    @staticmethod
    def backward(ctx, upstream: Tensor, *unused: Tensor):  # type: ignore[no-untyped-def]
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x.float() * upstream, grad_weight * upstream, None, None, None, None, None


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
    sums = _HeadDivergence.apply(  # type: ignore[no-untyped-call]
        hidden.flatten(0, 1)[wanted],
        weight[:both],
        theirs.flatten(0, 1)[wanted],
        their_head[:both],
        targets.flatten()[wanted],
        divergence,
        dtype,
    )
    count = max(int(wanted.sum()), 1)
    return sums[0] / count, sums[1] / count, sums[2] / count
