"""Attention over a sliding window and, where the layer has a compressor, over compressed entries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fourfold.config import ModelConfig
from fourfold.kernels.composed import (
    CompressorWeights,
    InputArguments,
    SeenArguments,
    Stored,
    StreamEntry,
    StreamMixing,
)
from fourfold.kernels.formats import Rounding
from fourfold.model.batch import ForwardBatch
from fourfold.model.compressor import Compressor
from fourfold.model.indexer import Indexer
from fourfold.model.linear import GroupedLinear, Kept, Linear, Noted, RMSNorm
from fourfold.model.memory import LayerMemory
from fourfold.model.numerics import Numerics


class Attention(Noted):
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
        self._weights_in, self._weights_out = Kept(self._to_inputs), Kept(self._to_output)
        # What forward needs, past nn.Module's lookup, which costs half a microsecond a module and token.
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
        ops = batch.operations
        x, post, comb, qr, q, kv, *rows = ops.attention_inputs(streams, *inputs, **mixing)
        window = memory.window.extend(self.numerics.kv(kv, self.rope_width))
        entries, chosen = self._compressed(x, qr, rows, batch, memory)
        y = ops.attention(q, *self._seen(window, entries, chosen, batch))
        return y, post, comb

    def inputs(self, entry: StreamEntry, batch: ForwardBatch) -> InputArguments:
        """What `kernels.attention_inputs` takes after the streams, which enter as `entry` says."""
        before, after = self._weights_in()
        angles = batch.token_angles(self.ratio > 0)
        return (entry, *before, *angles, *after, batch.layout.positions, self.numerics.rounding)

    def _to_inputs(
        self,
    ) -> tuple[
        tuple[Stored, Tensor, Stored, Stored, Tensor],
        tuple[int, tuple[Rounding, ...], tuple[CompressorWeights, ...]],
    ]:
        """What `inputs` has before and after the angles."""
        to_q_a, to_q_b, to_kv = self.wq_a.stored, self.wq_b.stored, self.wkv.stored
        roundings = self.numerics.inputs_of(to_q_a, to_q_b, to_kv)
        compressors = tuple([compressor.weights for compressor in self._compressors])
        return (to_q_a, self.q_norm.gain, to_q_b, to_kv, self.kv_norm.gain), (
            self.heads,
            roundings,
            compressors,
        )

    def in_place(
        self, batch: ForwardBatch, memory: LayerMemory
    ) -> tuple[tuple[Tensor, ...], SeenArguments] | None:
        """The slots of this call's rows and what attention sees, for `kernels.block`; None in a call that
        completes an entry, leaves one out, or has no such slots."""
        layout, (_, indexer) = batch.layout, self._choosing
        if self.numerics.rounds_kv or (self.ratio and layout.completed(self.ratio)):
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
        before, after = self._weights_out()
        layout = batch.layout
        visible = layout.visible(self.ratio) if entries is not None and chosen is None else None
        angles = batch.token_angles(self.ratio > 0)
        return (window, layout.window_range, entries, visible, chosen, *before, *angles, *after)

    def _to_output(
        self,
    ) -> tuple[tuple[Tensor, float, Rounding], tuple[Stored, int, Stored, tuple[Rounding, ...]]]:
        """What `_seen` has before and after the angles."""
        to_output = self.wo_b.stored
        roundings = (self.wo_a.rounding, *self.numerics.inputs_of(to_output))
        before = (self.attn_sink, self.width**-0.5, self.numerics.rounding)
        return before, (self.wo_a.stored, self.groups, to_output, roundings)

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
            return memory.entries.seen(memory.entries.unchanged(), chosen)
        new = self.numerics.kv(compressor(pending, batch), self.rope_width)
        entries, chosen = memory.entries.seen(memory.entries.extend(new), chosen)
        return None if entries is None else entries.expand(len(x), -1, -1), chosen
