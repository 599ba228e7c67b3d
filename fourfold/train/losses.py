"""What a training step minimises, and the one update that is no gradient (the routers' biases)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.train.data import IGNORE

# Rows of logits that exist at once: 1024 x 8192 float32 would be 32 MiB.
CHUNK = 1024
# Float32 logits that are turned into a loss at once: 1 MiB, which a processor's second cache holds.
CACHED = 1 << 18
UNIT = 128


class _HeadCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(x W^T)[target], with the gradient computed in the forward pass.

    The [N, V] logits never exist as a whole, in either direction: at a small width they are by far the
    largest tensor of a step, and memory is what a CPU waits for.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:  # type: ignore[no-untyped-def]
        low = weight.to(dtype)
        total = x.new_zeros((), dtype=torch.float32)
        grad_x = torch.empty_like(x, dtype=dtype)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(targets), CHUNK):
            target = targets[start : start + CHUNK].unsqueeze(-1)
            # Filled up with zeros: a product of a shape that oneDNN has not seen takes far longer.
            rows = F.pad(x[start : start + CHUNK].to(dtype), (0, 0, 0, -len(target) % UNIT))
            grad = rows @ low.mT
            grad[len(target) :] = 0
            step = max(1, CACHED // len(weight))
            for logits, own in zip(grad[: len(target)].split(step), target.split(step), strict=True):
                logp = torch.log_softmax(logits.float(), dim=-1)
                total -= logp.gather(-1, own).sum()
                minus_one = torch.full_like(own, -1, dtype=torch.float32)
                logits.copy_(logp.exp_().scatter_add_(-1, own, minus_one))
            grad_x[start : start + CHUNK] = (grad @ low)[: len(target)]
            if grad_weight is not None:
                grad_weight += grad.mT @ rows
        ctx.save_for_backward(grad_x, grad_weight)
        return total

    @staticmethod
    def backward(ctx, upstream: Tensor):  # type: ignore[no-untyped-def]
        grad_x, grad_weight = ctx.saved_tensors
        return (
            grad_x.float() * upstream,
            None if grad_weight is None else grad_weight * upstream,
            None,
            None,
        )


def head_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean next-token loss in nats over the positions that have a target, from the head's input.

    hidden [B, T, D] floating, weight [V, D] f32, or frozen in another type, targets [B, T] int64 with IGNORE;
    returns a scalar f32.
    dtype: of the products; the softmax is in float32.  Positions without a target cost nothing.
    """
    wanted = targets.flatten() != IGNORE
    rows, chosen = hidden.flatten(0, 1)[wanted], targets.flatten()[wanted]
    total: Tensor = _HeadCrossEntropy.apply(rows, weight, chosen, dtype)  # type: ignore[no-untyped-call]
    return total / max(len(chosen), 1)


def sequence_balance(scores: Tensor, indices: Tensor, rows: int) -> Tensor:
    """Slight pressure towards even use of the experts within each row.

    scores [N, E] f32, indices [N, K] int64, N = rows * T;  returns a scalar, 1 when even.
    mean over rows of sum_i f_i P_i;  f_i = E / (K T) * (times i was chosen), P_i = mean_t s_ti / sum_j s_tj.
    V4 report 2.1.
    """
    experts, chosen = scores.size(-1), indices.size(-1)
    share = (scores / scores.sum(-1, keepdim=True)).reshape(rows, -1, experts).mean(1)
    counts = torch.zeros(rows, experts, device=scores.device)
    flat = indices.reshape(rows, -1)
    counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=counts.dtype))
    frequency = counts * (experts / flat.size(1))
    assert flat.size(1) == scores.size(0) // rows * chosen
    return (frequency * share).sum(-1).mean()


@torch.no_grad()
def update_bias(bias: Tensor, load: Tensor, step: float) -> float:
    """Raise the bias of experts used less than the average by `step`, lower that of the others, in place.

    bias [E] f32, load [E]: how often each was chosen.  Returns the largest load as a multiple of the mean
    (1 is even).  Auxiliary-loss-free balancing, V4 report 2.1.
    """
    load = load.to(bias)
    bias += step * torch.sign(load.mean() - load)
    return float(load.max() / load.mean())
