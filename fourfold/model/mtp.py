"""Multi-token prediction: one more block that guesses the token after the next."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.model.batch import ForwardBatch
from fourfold.model.block import Block, HeadCollapse
from fourfold.model.linear import Linear, RMSNorm
from fourfold.model.memory import LayerMemory
from fourfold.model.numerics import Numerics


class MtpBlock(Block, HeadCollapse):
    """From the streams at position t and the token at t + 1 to the normed hidden state that predicts t + 2.

    X' = e_proj·RMSNorm(embed[t+1]) added to each stream of h_proj·RMSNorm(X[t]).  V4 report 2.1.
    """

    def __init__(self, config: ModelConfig, numerics: Numerics) -> None:
        super().__init__(config, config.mtp_kinds[0], config.mtp_ratios[0], numerics, hashed=False)
        width, eps = config.hidden_size, config.rms_norm_eps
        self.e_proj = Linear(width, width, numerics)
        self.h_proj = Linear(width, width, numerics)
        self.enorm = RMSNorm(width, eps)
        self.hnorm = RMSNorm(width, eps)
        self.norm = RMSNorm(width, eps)
        self._add_head_collapse(config)

    def advance(
        self, streams: Tensor, next_embedding: Tensor, batch: ForwardBatch, memory: LayerMemory
    ) -> Tensor:
        """streams [B, T, n, D], next_embedding [B, T, D] -> the streams of one position further."""
        embedded = self.e_proj(self.enorm(next_embedding)).unsqueeze(-2)
        mixed = embedded + self.h_proj(self.hnorm(streams))
        out: Tensor = self(mixed, batch, memory)
        return out

    def hidden(self, streams: Tensor) -> Tensor:
        """What `advance` gave -> [B, T, D] for the shared head."""
        return self.norm(self.collapse(streams, self.config))


def alone(config: ModelConfig) -> ModelConfig:
    """A model whose only layer is the MTP block, as far as a cache must know it."""
    return replace(
        config,
        num_hidden_layers=1,
        layer_kinds=config.mtp_kinds,
        layer_ratios=config.mtp_ratios,
        hash_layers=(False,),
    )
