"""Attention over a sliding window and, where the layer has a compressor, over compressed entries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fourfold import kernels
from fourfold.config import ModelConfig
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
        self.heads, self.width, self.groups, self.eps = heads, width, config.o_groups, eps
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
        self.compressor = (
            Compressor(config, ratio, width, overlapping=kind == "csa", numerics=numerics) if ratio else None
        )
        self.indexer = Indexer(config, ratio, numerics) if kind == "csa" else None

    def forward(self, x: Tensor, batch: ForwardBatch, memory: LayerMemory) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        angles = batch.token_angles(self.ratio > 0)
        qr, q, kv = kernels.attention_inputs(
            x,
            self.wq_a.stored,
            self.q_norm.weight,
            self.wq_b.stored,
            self.wkv.stored,
            self.kv_norm.weight,
            *angles,
            self.heads,
            self.eps,
            (self.wq_a.rounding, self.wq_b.rounding, self.wkv.rounding),
        )
        window = memory.window.extend(self.numerics.kv(kv, self.rope_width))
        entries, visible, chosen = self._compressed(x, qr, batch, memory)
        o = kernels.sparse_attention(
            q,
            window,
            batch.layout.window_range,
            entries,
            visible,
            chosen,
            self.attn_sink,
            self.width**-0.5,
            self.numerics.rounding,
        )
        roundings = self.wo_a.rounding, self.wo_b.rounding
        return kernels.attention_output(
            o, *angles, self.wo_a.stored, self.groups, self.wo_b.stored, roundings
        )

    def _compressed(
        self, x: Tensor, qr: Tensor, batch: ForwardBatch, memory: LayerMemory
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Entries [B, S, C], the range each query sees, and the indexer's choice among them if it made
        one."""
        if self.compressor is None:
            return None, None, None
        chosen = None if self.indexer is None else self.indexer(x, qr, batch, memory)
        new = self.numerics.kv(self.compressor(x, batch, memory.tail), self.rope_width)
        blocks = batch.layout.blocks(self.ratio, self.compressor.overlapping)
        return memory.entries.extend(new), blocks.visible, chosen
