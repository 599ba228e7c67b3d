"""Low-rank adapters on stored weights: W·x + scale · B·(A·x), for all tokens of a call or for some of them.

The base product is whatever runs it without an adapter, so that tokens without one keep their bits in a call
where others have one.  What is added to a token is made of contract operations whose sums depend on its own
data alone: the same bits alone and among others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fourfold import kernels
from fourfold.kernels import composed
from fourfold.kernels.composed import ExpertWeights, Stored
from fourfold.kernels.formats import Rounding

Gated = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class LowRank:
    """a [r, I], b [O, r] of one matrix, or [E, r, I], [E, O, r] of a stack of experts; float32 or bf16."""

    a: Tensor
    b: Tensor
    scale: float

    def added(self, x: Tensor) -> Tensor:
        """scale · b·(a·x), float32.  x [..., I] -> [..., O]."""
        return kernels.linear(kernels.linear(x.float(), self.a, None), self.b, None).float() * self.scale

    def added_by_group(self, x: Tensor, groups: int) -> Tensor:
        """The same where each group of x [..., G, I] has its own rows of b [G·O, r] -> [..., G, O]."""
        inner = kernels.linear(x.float(), self.a, None)
        return kernels.grouped_linear(inner, self.b, None, groups).float() * self.scale

    def of_expert(self, number: int) -> LowRank:
        """Of one expert of a stack."""
        return LowRank(self.a[number], self.b[number], self.scale)


@dataclass(frozen=True)
class Adapter:
    """matrices: what is added to which parameter, by name.  digest: tells it from every other adapter."""

    matrices: Mapping[str, LowRank]
    digest: str

    def on(self, model: nn.Module) -> Mapping[int, LowRank]:
        """By the identity of the model's weights, as long as these are not exchanged; of stacks by that of
        the modules that hold them: layers whose experts are streamed share their memory."""
        return {
            id(
                model.get_submodule(name.removesuffix(".weight"))
                if own.a.dim() == 3
                else model.get_parameter(name)
            ): own
            for name, own in self.matrices.items()
        }


Group = tuple[Tensor | None, Mapping[int, LowRank]]
"""Places of tokens in the call, int64 [n] (None: all tokens), and what their adapter adds, as `Adapter.on`
says."""


def gated_by_pool(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """silu(min(gate, L)) · clamp(up, -L, L), float32 [n, I], as a pool of two: softmax(g, 0) is sigmoid(g).

    torch's own functions round differently within a tensor and at its end, so that a token's bits would
    depend on how many others there are.
    """
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    none = torch.zeros_like(gate)
    values, scores = torch.stack([gate * up, none], dim=1), torch.stack([gate, none], dim=1)
    return kernels.pool(values[None], scores[None])[0]


class AdaptedOperations:
    """The operations of a call some of whose tokens have adapters; what adapters do not touch is the
    contract's."""

    def __init__(self, groups: Sequence[Group], gated: Gated = gated_by_pool) -> None:
        self._groups = groups
        self._gated = gated
        self.attention_inputs = partial(composed.attention_inputs, self)
        self.attention = partial(composed.attention, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(kernels, name)

    def linear(
        self, x: Tensor, weight: Tensor, scale: Tensor | None, rounding: Rounding = Rounding.NONE
    ) -> Tensor:
        y = kernels.linear(x, weight, scale, rounding)
        for rows, (own,) in self._touching(weight):
            assert own is not None
            y = _plus(y, rows, own.added(_chosen(x, rows, 1)), 1)
        return y

    def grouped_linear(
        self, x: Tensor, weight: Tensor, scale: Tensor | None, groups: int, rounding: Rounding = Rounding.NONE
    ) -> Tensor:
        y = kernels.grouped_linear(x, weight, scale, groups, rounding)
        for rows, (own,) in self._touching(weight):
            assert own is not None
            y = _plus(y, rows, own.added_by_group(_chosen(x, rows, 2), groups), 2)
        return y

    def experts_of(
        self,
        modules: Sequence[nn.Module],
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
        places: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """`kernels.experts` of the stacks that these modules hold: w1, w3 and w2."""
        stacks: ExpertWeights = (w1, s1), (w3, s3), (w2, s2)
        touching = self._touching(*modules)

        def asked(rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            return _chosen(x, rows, 1), _chosen(indices, rows, 1), _chosen(weights, rows, 1)

        def before(rows: Tensor | None) -> Tensor | None:
            return None if out is None else _chosen(out, rows, 1)

        def plain(rows: Tensor | None) -> Tensor:
            sums = before(rows)
            return kernels.experts(*asked(rows), w1, s1, w3, s3, w2, s2, limit, rounding, places, sums)

        def adapted(rows: Tensor | None, own: Sequence[LowRank | None]) -> Tensor:
            sums = before(rows)
            return visit_experts(*asked(rows), stacks, own, limit, rounding, places, sums, gated=self._gated)

        y = _by_rows(x, touching, plain, adapted)
        return y if out is None or y is out else out.copy_(y)

    def shared_expert(self, x: Tensor, weights: ExpertWeights, limit: float, rounding: Rounding) -> Tensor:
        touching = self._touching(*(weight for weight, _ in weights))

        def plain(rows: Tensor | None) -> Tensor:
            return kernels.shared_expert(_chosen(x, rows, 1), weights, limit, rounding)

        def adapted(rows: Tensor | None, own: Sequence[LowRank | None]) -> Tensor:
            of = _chosen(x, rows, 1).float()
            gate, up = (_product(of, w, rounding, added) for w, added in zip(weights[:2], own, strict=False))
            return _product(self._gated(gate, up, limit), weights[2], rounding, own[2])

        return _by_rows(x, touching, plain, adapted)

    def _touching(self, *weights: object) -> list[tuple[Tensor | None, list[LowRank | None]]]:
        """The groups whose adapter adds to one of these weights, and what to each."""
        found = [(rows, [of.get(id(weight)) for weight in weights]) for rows, of in self._groups]
        return [(rows, own) for rows, own in found if any(own)]


def visit_experts(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    stacks: ExpertWeights,
    own: Sequence[LowRank | None],
    limit: float,
    rounding: Rounding,
    places: Tensor | None,
    before: Tensor | None,
    *,
    gated: Gated,
) -> Tensor:
    """`kernels.experts` expert by expert, with what adapters add to w1, w3 and w2.

    before [N, D]: what the sums begin with.
    """
    x = x.float()
    count = indices.shape[1]
    order = torch.argsort(indices.flatten(), stable=True)
    numbers, sizes = indices.flatten()[order].unique_consecutive(return_counts=True)
    rows = x.index_select(0, order // count).split(sizes.tolist())
    amounts = weights.flatten()[order].unsqueeze(-1).split(sizes.tolist())
    results = []
    for number, part, amount in zip(numbers.tolist(), rows, amounts, strict=True):
        place = number if places is None else int(places[number])
        if place < 0:
            results.append(torch.zeros_like(part))
            continue
        w1, w3, w2 = ((w[place], None if s is None else s[place]) for w, s in stacks)
        add1, add3, add2 = (None if added is None else added.of_expert(number) for added in own)
        gate, up = _product(part, w1, rounding, add1), _product(part, w3, rounding, add3)
        results.append(_product(gated(gate, up, limit) * amount, w2, rounding, add2))
    # A token adds its experts in ascending order of their number, whatever the batch.
    visits = torch.cat(results)
    where = torch.argsort(order).view(-1, count).sort(dim=1).values
    y = torch.zeros_like(x) if before is None else before
    for k in range(count):
        y = y + visits.index_select(0, where[:, k])
    return y


def _product(x: Tensor, stored: Stored, rounding: Rounding, added: LowRank | None) -> Tensor:
    y = kernels.linear(x, *stored, rounding).float()
    return y if added is None else y + added.added(x)


def _chosen(x: Tensor, rows: Tensor | None, kept: int) -> Tensor:
    """Those tokens of x, whose last `kept` dims are one token's."""
    return x if rows is None else x.flatten(0, -1 - kept).index_select(0, rows)


def _plus(y: Tensor, rows: Tensor | None, added: Tensor, kept: int) -> Tensor:
    """y with this added to those tokens, in place where they are not all."""
    if rows is None:
        return (y.float() + added).to(y.dtype)
    y = y.contiguous()
    flat = y.flatten(0, -1 - kept)
    flat.index_copy_(0, rows, (flat.index_select(0, rows).float() + added).to(y.dtype))
    return y


def _by_rows(
    x: Tensor,
    touching: Sequence[tuple[Tensor | None, Sequence[LowRank | None]]],
    plain: Callable[[Tensor | None], Tensor],
    adapted: Callable[[Tensor | None, Sequence[LowRank | None]], Tensor],
) -> Tensor:
    """[N, D] f32 for x [N, D]: `adapted` of the groups, `plain` of all other tokens."""
    if not touching:
        return plain(None)
    if touching[0][0] is None:
        return adapted(None, touching[0][1])
    y = torch.empty(x.shape, device=x.device)
    others = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for rows, own in touching:
        assert rows is not None
        others[rows] = False
        y.index_copy_(0, rows, adapted(rows, own))
    if len(left := others.nonzero()[:, 0]):
        y.index_copy_(0, left, plain(left))
    return y
