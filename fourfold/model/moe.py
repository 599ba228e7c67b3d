"""Mixture of experts: a router by score or by token id, routed experts, and one shared expert."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.kernels.composed import ExpertWeights, MoeArguments
from fourfold.kernels.formats import Rounding
from fourfold.model.batch import ForwardBatch, Routing
from fourfold.model.experts import Asked, ExpertSource, Resident
from fourfold.model.linear import INIT_STD, Kept, Linear, Noted, StoredWeight
from fourfold.model.numerics import Numerics


class Gate(Noted):
    """Chooses K experts a token.  Hash layers look them up by token id (tid2eid [V, K]); the others take the
    best scores plus a bias that only selects.  V4 report 2.1.
    """

    tid2eid: Tensor | None
    bias: Tensor | None

    def __init__(self, config: ModelConfig, *, hashed: bool) -> None:
        super().__init__()
        experts, k = config.n_routed_experts, config.num_experts_per_tok
        self.k, self.scaling, self.hashed = k, config.routed_scaling_factor, hashed
        self.weight = nn.Parameter(torch.randn(experts, config.hidden_size) * INIT_STD)
        if hashed:
            # Token v goes to K different experts, evenly spread over the vocabulary.
            table = (torch.arange(config.vocab_size)[:, None] + torch.arange(k) * (experts // k)) % experts
            self.register_buffer("tid2eid", table)
        else:
            self.bias = nn.Parameter(torch.zeros(experts), requires_grad=False)

    def known(self, ids: Tensor) -> Tensor | None:
        """The experts [N, K] that follow from the token ids [B, T] alone, in hash layers."""
        if not self.hashed:
            return None
        assert self.tid2eid is not None
        return self.tid2eid[ids.flatten()]

    @property
    def learned(self) -> tuple[Tensor, Tensor | None]:
        """The weight, and the bias of a layer that chooses by score."""
        own: Mapping[str, Any] = self._parameters
        return own["weight"], own.get("bias")

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, D], ids [B, T] -> indices [N, K] int64, weights [N, K] f32, scores [N, E] f32."""
        weight, bias = self.learned
        known = self.known(ids)
        if known is not None:
            return kernels.route_hash(x, weight, known, self.scaling)
        assert bias is not None
        return kernels.route_topk(x, weight, bias, self.k, self.scaling)


class Experts(nn.Module):
    """The routed experts of a layer: w1, w3 [E, I, D] and w2 [E, D, I], in the stored format.

    source: what fills the stacks where they hold fewer than all experts.
    """

    def __init__(self, config: ModelConfig, numerics: Numerics) -> None:
        super().__init__()
        experts, width, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.limit = config.swiglu_limit
        self.numerics = numerics
        self.source: ExpertSource = Resident()
        self.w1 = StoredWeight(experts, inner, width)
        self.w3 = StoredWeight(experts, inner, width)
        self.w2 = StoredWeight(experts, width, inner)
        self._matrices = self.w1, self.w3, self.w2

    @property
    def stored(self) -> ExpertWeights:
        """For `kernels.experts` and `kernels.moe`."""
        w1, w3, w2 = self._matrices
        return w1.stored, w3.stored, w2.stored

    def forward(self, asked: Asked, operations: Any = kernels) -> Tensor:
        """-> [N, D] f32."""
        y = self.added(asked, self.stored, self.source.passes(asked.indices), operations)
        others = None if asked.others is None else self.source.elsewhere(asked.others)
        if y is None or others is None:
            y = others if y is None else y
            assert y is not None
            return y
        return y + others

    def added(
        self,
        asked: Asked,
        stacks: ExpertWeights,
        passes: Iterable[Tensor | None],
        operations: Any = kernels,
    ) -> Tensor | None:
        """What the experts in these stacks add [N, D] f32, pass by pass; None if there is none."""
        (w1, s1), (w3, s3), (w2, s2) = stacks
        rounding = self.numerics.input_of(w1, s1)
        x, indices, weights = asked.x, asked.indices, asked.weights
        experts = kernels.experts
        if operations is not kernels:
            experts = partial(operations.experts_of, self._matrices)
        y = None
        for places in passes:
            y = experts(x, indices, weights, w1, s1, w3, s3, w2, s2, self.limit, rounding, places, y)
        return y


class SharedExpert(nn.Module):
    """The expert that every token visits, clamped like the others."""

    def __init__(self, config: ModelConfig, numerics: Numerics) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.moe_intermediate_size
        self.limit = config.swiglu_limit
        self.w1 = Linear(width, inner, numerics)
        self.w3 = Linear(width, inner, numerics)
        self.w2 = Linear(inner, width, numerics)
        self._matrices = self.w1, self.w3, self.w2

    @property
    def stored(self) -> ExpertWeights:
        """For `kernels.shared_expert` and `kernels.moe`."""
        w1, w3, w2 = self._matrices
        return w1.stored, w3.stored, w2.stored

    def forward(self, x: Tensor, operations: Any = kernels) -> Tensor:
        """x [N, D] -> [N, D] f32."""
        y: Tensor = operations.shared_expert(x, self.stored, self.limit, self.w1.rounding)
        return y


class MoE(nn.Module):
    """y = Σ chosen experts + shared expert.  V4 report 2.1."""

    def __init__(self, config: ModelConfig, numerics: Numerics, *, hashed: bool) -> None:
        super().__init__()
        self.gate = Gate(config, hashed=hashed)
        self.experts = Experts(config, numerics)
        self.shared_experts = SharedExpert(config, numerics)
        self._parts = self.gate, self.experts, self.shared_experts
        self._weights = Kept(self._arguments)

    @property
    def source(self) -> ExpertSource:
        """Who has the routed experts."""
        return self._parts[1].source

    @property
    def runs_at_once(self) -> bool:
        """Whether nobody must see the choice: training notes it, streamed experts come because of it."""
        return not self.training and isinstance(self._parts[1].source, Resident)

    def arguments(self, ids: Tensor) -> MoeArguments:
        """For `kernels.moe`.  ids [B, T]."""
        router, rest = self._weights()
        return (*router, self._parts[0].known(ids), *rest)

    def _arguments(
        self,
    ) -> tuple[
        tuple[Tensor, Tensor | None],
        tuple[int, float, ExpertWeights, ExpertWeights, float, tuple[Rounding, ...]],
    ]:
        """What `arguments` has before and after the experts that are known."""
        gate, experts, shared = self._parts
        routed, alone = experts.stored, shared.stored
        roundings = experts.numerics.inputs_of(routed[0], alone[0])
        return gate.learned, (gate.k, gate.scaling, routed, alone, experts.limit, roundings)

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        """x [B, T, D] -> [B, T, D], part by part."""
        flat = x.flatten(0, 1)
        indices, weights, scores = self.gate(flat, batch.ids)
        if self.training and not self.gate.hashed:
            batch.routing.append(Routing(scores, indices))
        if batch.choices is not None:
            batch.choices.experts.append((indices[batch.choices.rows], weights[batch.choices.rows]))
        asked = self.experts.source.chosen(Asked(flat, indices, weights))
        # While routed ones that are not in RAM are on their way:
        shared = self.shared_experts(flat, batch.operations)
        y = self.experts(asked, batch.operations) + shared
        return y.to(x.dtype).view_as(x)
