"""The token compressor: one KV entry for every m tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.kernels.composed import CompressorWeights
from fourfold.model.batch import ForwardBatch
from fourfold.model.linear import INIT_STD, Noted, RMSNorm, StoredWeight


class Compressor(Noted):
    """Softmax-pools the tokens of each complete block, channel by channel, into one entry of `width`.

    An overlapping compressor (CSA) makes two halves of channels: an entry pools the second half of its own m
    tokens and the first half of the m before.  All in float32.  V4 report 2.3.1, eq. 9-12; 2.3.2, eq. 20-23.
    """

    def __init__(self, config: ModelConfig, ratio: int, width: int, *, overlapping: bool) -> None:
        super().__init__()
        self.ratio, self.width, self.overlapping = ratio, width, overlapping
        channels = 2 * width if overlapping else width
        self.wkv = StoredWeight(channels, config.hidden_size)
        self.wgate = StoredWeight(channels, config.hidden_size)
        self.ape = nn.Parameter(torch.randn(ratio, channels) * INIT_STD)
        self.norm = RMSNorm(width, config.rms_norm_eps)

    @property
    def weights(self) -> CompressorWeights:
        """For `kernels.compressor_inputs`."""
        return self.wkv.stored, self.wgate.stored, self.ape

    def forward(self, pending: Tensor, batch: ForwardBatch) -> Tensor:
        """pending [B, L, 2C], or [1, L, 2C] for all B: compressor_inputs of the held tokens and this call's
        -> the entries that these complete, normed and turned, [B, S, width] float32."""
        tokens = batch.layout.blocks(self.ratio, self.overlapping).tokens
        angles = batch.block_angles(self.ratio, self.overlapping)
        pending, norm = pending.expand(len(tokens), -1, -1), self.norm
        return kernels.compressor_entries(pending, tokens, norm.gain, *angles, self.overlapping, norm.eps)
