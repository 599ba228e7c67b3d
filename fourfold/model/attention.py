"""Attention over a sliding window and, where the layer has a compressor, over compressed entries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.kernels.composed import InputArguments, SeenArguments, StreamEntry, StreamMixing
from fourfold.model.batch import ForwardBatch
from fourfold.model.compressor import Compressor
from fourfold.model.indexer import Indexer
from fourfold.model.linear import GroupedLinear, Linear, RMSNorm
from fourfold.model.memory import LayerMemory
from fourfold.model.numerics import Numerics


class Attention(nn.Module):
    """Many query heads, one shared key-value vector, partial RoPE that the output turns back, a sink logit.

    ratio 0: sliding window (SWA); kind "csa": window + entries chosen by the indexer; kind "hca": window +
    all entries.  V4 report 2.3.
    """

    def __init__(self, config: ModelConfig, kind: str, ratio: int, numerics: Numerics) -> None:
        super().__init__()
        heads, width, eps = config.num_attention_heads, config.head_dim, config.rms_norm_eps
        self.heads, self.width, self.groups = heads, width, config.o_groups
        self.rope_width = config.qk_rope_head_dim
        self.ratio = ratio
        self.numerics = numerics
        self.wq_a = Linear(config.hidden_size, config.q_lora_rank, numerics)
        self.q_norm = RMSNorm(config.q_lora_rank, eps)
        self.wq_b = Linear(config.q_lora_rank, heads * width, numerics)
        self.wkv = Linear(config.hidden_size, width, numerics)
        self.kv_norm = RMSNorm(width, eps)
        self.wo_a = GroupedLinear(heads * width // self.groups, config.o_lora_rank, self.groups, numerics)
        self.wo_b = Linear(self.groups * config.o_lora_rank, config.hidden_size, numerics)
        self.attn_sink = nn.Parameter(torch.zeros(heads))
        self.compressor = Compressor(config, ratio, width, overlapping=kind == "csa") if ratio else None
        self.indexer = Indexer(config, ratio, numerics) if kind == "csa" else None
        # What forward needs, past nn.Module's lookup, which costs half a microsecond a module and token.
        self._projections = self.wq_a, self.q_norm, self.wq_b, self.wkv, self.kv_norm, self.wo_a, self.wo_b
        self._choosing = self.compressor, self.indexer
        self._compressors: list[Compressor] = []
        if self.compressor is not None:
            self._compressors.append(self.compressor)
        if self.indexer is not None:
            self._compressors.append(self.indexer.compressor)

    def forward(
        self,
        streams: Tensor,
        inputs: InputArguments,
        mixing: StreamMixing,
        batch: ForwardBatch,
        memory: LayerMemory,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """streams [B, T, n, D] and what `inputs` gave -> the output [B, T, D], and post and comb for its way
        back."""
        x, post, comb, qr, q, kv, *rows = kernels.attention_inputs(streams, *inputs, **mixing)
        window = memory.window.extend(self.numerics.kv(kv, self.rope_width))
        entries, chosen = self._compressed(x, qr, rows, batch, memory)
        y = kernels.attention(q, *self._seen(window, entries, chosen, batch))
        return y, post, comb

    def inputs(self, entry: StreamEntry, batch: ForwardBatch) -> InputArguments:
        """What `kernels.attention_inputs` takes after the streams, which enter as `entry` says."""
        wq_a, q_norm, wq_b, wkv, kv_norm, _, _ = self._projections
        to_q_a, to_q_b, to_kv = wq_a.stored, wq_b.stored, wkv.stored
        return (
            entry,
            to_q_a,
            q_norm.gain,
            to_q_b,
            to_kv,
            kv_norm.gain,
            *batch.token_angles(self.ratio > 0),
            self.heads,
            self.numerics.inputs_of(to_q_a, to_q_b, to_kv),
            tuple([compressor.weights for compressor in self._compressors]),
            batch.layout.positions,
            self.numerics.rounding,
        )

    def in_place(
        self, batch: ForwardBatch, memory: LayerMemory
    ) -> tuple[tuple[Tensor, ...], SeenArguments] | None:
        """The slots of this call's rows and what attention sees, for `kernels.block`; None in a call that
        completes an entry, leaves one out, or has no such slots."""
        layout, (_, indexer) = batch.layout, self._choosing
        if self.numerics.published or (self.ratio and layout.completed(self.ratio)):
            return None
        if indexer is not None and layout.most_visible(self.ratio) > indexer.topk:
            return None
        new = layout.positions.shape[1]
        tails = (memory.tail, memory.index_tail)[: len(self._compressors)]
        places = [buffer.slot(new) for buffer in (memory.window, *tails)]
        if any(place is None for place in places):
            return None
        slots, (window, *_) = zip(*places, strict=True)
        listed = layout.listed(self.ratio) if self.ratio else None
        return slots, self._seen(window, memory.entries.unchanged(), listed, batch)

    def _seen(
        self, window: Tensor, entries: Tensor | None, chosen: Tensor | None, batch: ForwardBatch
    ) -> SeenArguments:
        """What `kernels.attention` takes after the queries."""
        own: Mapping[str, Any] = self._parameters
        by_range = entries is not None and chosen is None
        wo_a, wo_b = self._projections[-2:]
        to_output = wo_b.stored
        return (
            window,
            batch.layout.window_range,
            entries,
            batch.layout.visible(self.ratio) if by_range else None,
            chosen,
            own["attn_sink"],
            self.width**-0.5,
            self.numerics.rounding,
            *batch.token_angles(self.ratio > 0),
            wo_a.stored,
            self.groups,
            to_output,
            (wo_a.rounding, *self.numerics.inputs_of(to_output)),
        )

    def _compressed(
        self, x: Tensor, qr: Tensor, rows: list[Tensor], batch: ForwardBatch, memory: LayerMemory
    ) -> tuple[Tensor | None, Tensor | None]:
        """Entries [B, S, C] if there are any, and which of them are seen where that is no range: the
        indexer's choice, or all that lie apart.  rows: of the compressor, then of the indexer's."""
        compressor, indexer = self._choosing
        if compressor is None:
            return None, None
        chosen = None if indexer is None else indexer(x, qr, rows[1], batch, memory)
        if chosen is None:
            chosen = batch.layout.listed(self.ratio)
        pending = memory.tail.extend(rows[0])
        if not batch.layout.completed(self.ratio):
            return memory.entries.unchanged(), chosen
        return memory.entries.extend(self.numerics.kv(compressor(pending, batch), self.rope_width)), chosen
