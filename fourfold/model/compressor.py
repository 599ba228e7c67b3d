"""The token compressor: one KV entry for every m tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.model.batch import ForwardBatch
from fourfold.model.buffers import KVBuffer
from fourfold.model.linear import INIT_STD, RMSNorm, StoredWeight
from fourfold.model.numerics import Numerics


class Compressor(nn.Module):
    """Softmax-pools the tokens of each complete block, channel by channel, into one entry of `width`.

    An overlapping compressor (CSA) makes two halves of channels: an entry pools the second half of its own m
    tokens and the first half of the m before.  All in float32.  V4 report 2.3.1, eq. 9-12; 2.3.2, eq. 20-23.
    """

    def __init__(
        self, config: ModelConfig, ratio: int, width: int, *, overlapping: bool, numerics: Numerics
    ) -> None:
        super().__init__()
        self.numerics = numerics
        self.ratio, self.width, self.overlapping = ratio, width, overlapping
        channels = 2 * width if overlapping else width
        self.wkv = StoredWeight(channels, config.hidden_size)
        self.wgate = StoredWeight(channels, config.hidden_size)
        self.ape = nn.Parameter(torch.randn(ratio, channels) * INIT_STD)
        self.norm = RMSNorm(width, config.rms_norm_eps)

    def forward(self, x: Tensor, batch: ForwardBatch, tail: KVBuffer) -> Tensor:
        """x [B, T, D] -> the entries completed by these tokens, normed and turned, [B, S, width] float32."""
        rows = kernels.compressor_inputs(
            x,
            self.wkv.stored,
            self.wgate.stored,
            self.ape,
            batch.layout.positions,
            self.numerics.rounding,
        )
        pending = tail.extend(rows)
        blocks = batch.layout.blocks(self.ratio, self.overlapping)
        if not blocks.tokens.shape[1]:
            return pending.new_empty(*blocks.tokens.shape[:2], self.width)
        values, scores = self._gather(pending, blocks.tokens)
        entries = self.norm(kernels.pool(values, scores))
        return kernels.rope(entries, *batch.block_angles(self.ratio, self.overlapping), inverse=False)

    def _gather(self, pending: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Values and scores [B, S, m or 2m, width] of the tokens of each block; absent tokens score -inf."""
        rows = torch.arange(tokens.shape[0], device=tokens.device)[:, None, None]
        values, scores = pending[rows, tokens.clamp_min(0)].chunk(2, dim=-1)
        if self.overlapping:
            values, scores = self._halves(values), self._halves(scores)
        return values, scores.masked_fill((tokens < 0).unsqueeze(-1), float("-inf"))

    def _halves(self, x: Tensor) -> Tensor:
        """First half of the channels for the block before, second half for the block itself."""
        before, own = x.split(self.ratio, dim=2)
        return torch.cat([before[..., : self.width], own[..., self.width :]], dim=2)
