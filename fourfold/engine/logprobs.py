"""Log probabilities of tokens, as OpenAI and vLLM (its mode "raw_logprobs") give them.

They are the model's own: the log softmax of the logits as they come out of it, before penalties, biases,
masks and temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_PIECE = 1 << 14  # torch shares longer sums among its threads, and the bits would depend on their number


@dataclass(frozen=True)
class TokenLogprob:
    """logprob: of the token that is there, natural logarithm.

    top: the most likely tokens with theirs, the first first, the lower id of equals first; as many as were
    asked for, and the token itself is not added to them.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def token_logprob(logits: Tensor, token: int, top: int) -> TokenLogprob:
    """From logits [V] f32, on the CPU."""
    wide = logits.double()
    peak = wide.max()
    total = torch.stack([piece.sum() for piece in (wide - peak).exp().split(_PIECE)]).sum()
    base = peak + total.log()
    best: tuple[tuple[int, float], ...] = ()
    if top:
        floor = logits.topk(min(top, len(logits))).values[-1]
        ids = (logits >= floor).nonzero().squeeze(-1)
        order = ids[logits[ids].argsort(descending=True, stable=True)][:top]
        best = tuple(zip(order.tolist(), (wide[order] - base).tolist(), strict=True))
    return TokenLogprob(token, float(wide[token] - base), best)
