"""Attention over a sliding window and, where the layer has a compressor, over compressed entries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.kernels.composed import StreamEntry, StreamMixing
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
        entry: StreamEntry,
        mixing: StreamMixing,
        batch: ForwardBatch,
        memory: LayerMemory,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """streams [B, T, n, D] that enter as `kernels.hc_input` says -> the output [B, T, D], and post and
        comb for its way back."""
        layout, numerics = batch.layout, self.numerics
        wq_a, q_norm, wq_b, wkv, kv_norm, wo_a, wo_b = self._projections
        stored_q_a, stored_q_b, stored_kv = wq_a.stored, wq_b.stored, wkv.stored
        cos, sin = batch.token_angles(self.ratio > 0)
        x, post, comb, qr, q, kv, *rows = kernels.attention_inputs(
            streams,
            entry,
            stored_q_a,
            q_norm.gain,
            stored_q_b,
            stored_kv,
            kv_norm.gain,
            cos,
            sin,
            self.heads,
            numerics.inputs_of(stored_q_a, stored_q_b, stored_kv),
            tuple([compressor.weights for compressor in self._compressors]),
            layout.positions,
            numerics.rounding,
            **mixing,
        )
        window = memory.window.extend(numerics.kv(kv, self.rope_width))
        entries, visible, chosen = self._compressed(x, qr, rows, batch, memory)
        own: Mapping[str, Any] = self._parameters
        stored_o_b = wo_b.stored
        y = kernels.attention(
            q,
            window,
            layout.window_range,
            entries,
            visible,
            chosen,
            own["attn_sink"],
            self.width**-0.5,
            numerics.rounding,
            cos,
            sin,
            wo_a.stored,
            self.groups,
            stored_o_b,
            (wo_a.rounding, *numerics.inputs_of(stored_o_b)),
        )
        return y, post, comb

    def _compressed(
        self, x: Tensor, qr: Tensor, rows: list[Tensor], batch: ForwardBatch, memory: LayerMemory
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Entries [B, S, C] if there are any, the range each query sees, and the indexer's choice among them
        if it made one.  rows: of the compressor, then of the indexer's."""
        compressor, indexer = self._choosing
        if compressor is None:
            return None, None, None
        chosen = None if indexer is None else indexer(x, qr, rows[1], batch, memory)
        if chosen is None:
            chosen = batch.layout.listed(self.ratio)
        pending = memory.tail.extend(rows[0])
        if batch.layout.completed(self.ratio):
            new = self.numerics.kv(compressor(pending, batch), self.rope_width)
            return memory.entries.extend(new), batch.layout.visible(self.ratio), chosen
        entries = memory.entries.unchanged()
        return entries, None if entries is None else batch.layout.visible(self.ratio), chosen
