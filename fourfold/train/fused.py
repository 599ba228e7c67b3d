"""The kernel contract's heavier operations in the forms that training on a CPU wants.

The same equations as `kernels.reference`, arranged for autograd and a narrow memory bus: everything that
only moves numbers is one function that torch.compile can fuse, tokens are gathered for all experts at once,
attention is one product over window and entries together, and Sinkhorn's derivative is written out. The
objective selects them with `kernels.replaced`; tests hold each against the reference, gradients included.
Training never rounds a product's input, so `rounding` goes unread.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.kernels.composed import ExpertWeights, StreamEntry
from fourfold.kernels.formats import Rounding
from fourfold.train.experts import Gated, arrange, by_expert
from fourfold.train.sinkhorn import Sinkhorn

Function = Callable[..., Any]
ENTRY_UNIT = 16
"""Compressed entries are padded to a multiple of this many."""
FORMS = 32
"""Shapes and types for which one function may be compiled."""


def linear(x: Tensor, weight: Tensor, scale: Tensor | None, rounding: Rounding = Rounding.NONE) -> Tensor:
    # No detour over float32: under autocast both sides become bf16 anyway.
    return F.linear(x, weight).to(x.dtype)


def grouped_linear(
    x: Tensor, weight: Tensor, scale: Tensor | None, groups: int, rounding: Rounding = Rounding.NONE
) -> Tensor:
    parts = [F.linear(x[..., g, :], w) for g, w in enumerate(weight.chunk(groups))]
    return torch.stack(parts, dim=-2).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight).to(x.dtype)


def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    gate = gate.float().clamp(max=limit)
    return (gate * torch.sigmoid(gate) * up.float().clamp(-limit, limit)).to(gate.dtype)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on the last dims; cos and sin broadcast against x."""
    width = 2 * cos.shape[-1]
    still, turned = x[..., :-width], x[..., -width:].float()
    even, odd = turned.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return torch.cat([still, turned.to(x.dtype)], dim=-1)


def mix(streams: Tensor, fn: Tensor, norm_eps: float) -> Tensor:
    flat = streams.flatten(-2)
    scale = torch.rsqrt(flat.float().square().mean(-1, keepdim=True) + norm_eps)
    return F.linear(flat, fn).float() * scale


def read(
    streams: Tensor, mixed: Tensor, scale: Tensor, base: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Input of the sublayer, post, and the logits of comb, from the mixed features [..., (2+n)n]."""
    n = streams.shape[-2]
    pre = torch.sigmoid(mixed[..., :n] * scale[0] + base[:n]) + eps
    post = 2 * torch.sigmoid(mixed[..., n : 2 * n] * scale[1] + base[n : 2 * n])
    comb = mixed[..., 2 * n :] * scale[2] + base[2 * n :]
    if torch.compiler.is_compiling():
        u = sum(
            (pre[..., j, None] * streams[..., j, :].float() for j in range(1, n)),
            pre[..., :1] * streams[..., 0, :],
        )
    else:
        u = _small_product(pre.unsqueeze(-2), streams).squeeze(-2)
    return u.to(streams.dtype), post, comb.unflatten(-1, (n, n))


def hc_post(output: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    n = streams.shape[-2]
    if not torch.compiler.is_compiling():
        mixed = _small_product(comb.mT, streams)
        return mixed.addcmul(post.unsqueeze(-1), output.float().unsqueeze(-2)).to(streams.dtype)
    rows = [streams[..., j, :].float() for j in range(n)]
    output = output.float()
    parts = [
        sum((comb[..., j, k, None] * rows[j] for j in range(n)), post[..., k, None] * output)
        for k in range(n)
    ]
    return torch.stack(parts, dim=-2).to(streams.dtype)


def enter(
    streams: Tensor, fn: Tensor, scale: Tensor, base: Tensor, gain: Tensor, norm_eps: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normed input of the sublayer, post, and the logits of comb."""
    u, post, comb = read(streams, mix(streams, fn, norm_eps), scale, base, eps)
    return rms_norm(u, gain, norm_eps), post, comb


def cross(
    streams: Tensor,
    output: Tensor,
    post: Tensor,
    comb: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    gain: Tensor,
    norm_eps: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A sublayer's way out and the next one's way in."""
    streams = hc_post(output, streams, post, comb)
    return streams, *enter(streams, fn, scale, base, gain, norm_eps, eps)


def collapse(streams: Tensor, mixed: Tensor, scale: Tensor, base: Tensor, eps: float) -> Tensor:
    pre = torch.sigmoid(mixed * scale + base) + eps
    return _small_product(pre.unsqueeze(-2), streams).squeeze(-2).to(streams.dtype)


def _small_product(coefficients: Tensor, streams: Tensor) -> Tensor:
    """coefficients [..., k, n] f32 · streams [..., n, D] in float32: one pass, where nothing is compiled."""
    with torch.autocast(streams.device.type, enabled=False):
        return coefficients @ streams.float()


def weigh(scores: Tensor, hidden: Tensor, sink: Tensor, scale: float) -> Tensor:
    """Softmax of scores [B, H, T, S] where `hidden` [B, 1, T, S] is false, with the sink's share left out."""
    logits = (scores.float() * scale).masked_fill(hidden, float("-inf"))
    top = torch.maximum(logits.amax(-1, keepdim=True), sink.view(1, -1, 1, 1)).detach()
    p = torch.exp(logits - top)
    return (p / (p.sum(-1, keepdim=True) + torch.exp(sink.view(1, -1, 1, 1) - top))).to(scores.dtype)


def routed_experts(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    w1: Tensor,
    s1: Tensor | None,
    w3: Tensor,
    s3: Tensor | None,
    w2: Tensor,
    s2: Tensor | None,
    limit: float,
    rounding: Rounding = Rounding.NONE,
    places: None = None,
    out: None = None,
    gated: Gated = swiglu,
) -> Tensor:
    at = arrange(indices.flatten(), w1.shape[0])
    results = by_expert(x, weights.flatten(), at, w1, w3, w2, limit, gated)
    return results.unflatten(0, indices.shape).float().sum(1)


def shared_expert(
    x: Tensor, weights: ExpertWeights, limit: float, rounding: Rounding, gated: Gated = swiglu
) -> Tensor:
    (w1, _), (w3, _), (w2, _) = weights
    return F.linear(gated(F.linear(x, w1), F.linear(x, w3), limit), w2).float()


def every_visible(q: Tensor, weights: Tensor, keys: Tensor, visible: Tensor, k: int) -> Tensor:
    """`kernels.index_topk` that leaves nothing out: [B, T, S], -1 where an entry is not visible."""
    return torch.arange(keys.shape[1], device=q.device).where(~_outside(visible, keys.shape[1]), -1)


class Fused:
    """The operations, handed to torch.compile if `length`, the tokens of a row, is given.

    Only tensors over all tokens of a batch are worth compiling for: their shape is the same in every step.
    The number of compressed entries is not, as it follows from the lengths of the samples.
    """

    def __init__(self, length: int | None = None) -> None:
        if length is not None:
            # One form for each kind of norm and projection: more than torch expects of one function.
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, FORMS)

        def prepare(function: Function) -> Function:
            if length is None:
                return function
            compiled = torch.compile(function, dynamic=False)
            return lambda x, *rest: (compiled if length in x.shape else function)(x, *rest)

        self.mix, self.post = prepare(mix), prepare(hc_post)
        self.collapsed, self.turn, self.norm = prepare(collapse), prepare(turn), prepare(rms_norm)
        self.enter, self.cross = prepare(enter), prepare(cross)
        self.weigh = prepare(weigh)
        self.watch: Callable[[Tensor, int], None] | None = (
            None  # is shown the weights over window and entries
        )
        # A flat list of tokens here, and the number that an expert gets changes; but their sum does not.
        self.gated = torch.compile(swiglu, dynamic=False) if length is not None else swiglu
        self.operations: dict[str, Function] = {
            "linear": linear,
            "grouped_linear": grouped_linear,
            "experts": partial(routed_experts, gated=self.gated),
            "shared_expert": partial(shared_expert, gated=self.gated),
            "rms_norm": self.norm,
            "rope": self.rope,
            "sparse_attention": self.sparse_attention,
            "hc_input": self.hc_input,
            "hc_next": self.hc_next,
            "hc_post": self.post,
            "hc_head": self.hc_head,
        }

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
        """As the contract."""
        if x.dim() == cos.dim() + 1:
            cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
        return self.turn(x, cos, -sin if inverse else sin)

    def hc_input(
        self, streams: Tensor, entry: StreamEntry, *, iters: int, norm_eps: float, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As the contract."""
        x, post, comb = self.enter(streams, *entry, norm_eps, eps)
        return x, post, Sinkhorn.apply(comb, iters, eps)  # type: ignore[no-untyped-call]

    def hc_next(
        self,
        output: Tensor,
        streams: Tensor,
        post: Tensor,
        comb: Tensor,
        entry: StreamEntry,
        *,
        iters: int,
        norm_eps: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As the contract."""
        streams, x, post, comb = self.cross(streams, output, post, comb, *entry, norm_eps, eps)
        return streams, x, post, Sinkhorn.apply(comb, iters, eps)  # type: ignore[no-untyped-call]

    def hc_head(
        self, streams: Tensor, fn: Tensor, scale: Tensor, base: Tensor, *, norm_eps: float, eps: float
    ) -> Tensor:
        """As the contract."""
        return self.collapsed(streams, self.mix(streams, fn, norm_eps), scale, base, eps)

    def sparse_attention(
        self,
        q: Tensor,
        window: Tensor,
        window_range: Tensor,
        entries: Tensor | None,
        entry_range: Tensor | None,
        entry_index: Tensor | None,
        sink: Tensor,
        scale: float,
        rounding: Rounding = Rounding.NONE,
    ) -> Tensor:
        """As the contract, for rows short enough for a whole matrix of scores; entry_index becomes a mask."""
        hidden = _outside(window_range, window.shape[1])
        kv = window
        if entries is not None:
            if entry_index is not None:
                count = entries.shape[1]
                chosen = torch.zeros(*entry_index.shape[:2], count + 1, dtype=torch.bool, device=q.device)
                chosen.scatter_(-1, entry_index.where(entry_index >= 0, count), True)
                unseen = ~chosen[..., :count]
            else:
                assert entry_range is not None
                unseen = _outside(entry_range, entries.shape[1])
            # Padded, so that the scores of nearly all batches have one shape and compiled code serves them.
            spare = -entries.shape[1] % ENTRY_UNIT
            hidden = torch.cat([hidden, F.pad(unseen, (0, spare), value=True)], dim=-1)
            kv = torch.cat([window, F.pad(entries, (0, 0, 0, spare)).to(window.dtype)], dim=1)
        kv = kv.to(q.dtype).unsqueeze(1)
        p = self.weigh(q.transpose(1, 2) @ kv.mT, hidden.unsqueeze(1), sink, scale)
        if self.watch is not None and entries is not None:
            self.watch(p, window.shape[1])
        return (p @ kv).transpose(1, 2).to(q.dtype)


def _outside(rows: Tensor, length: int) -> Tensor:
    """[B, T, 2] ranges -> [B, T, length] bool, True where a row is not in the range."""
    position = torch.arange(length, device=rows.device)
    return (position < rows[..., :1]) | (position >= rows[..., 1:])
