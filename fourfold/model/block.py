"""One transformer block: attention and MoE, each between manifold-constrained hyper-connections (mHC)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.kernels.composed import StreamEntry, StreamMixing
from fourfold.model.attention import Attention
from fourfold.model.batch import ForwardBatch
from fourfold.model.linear import Kept, Noted, RMSNorm
from fourfold.model.memory import LayerMemory
from fourfold.model.moe import MoE
from fourfold.model.numerics import Numerics

_INIT_SCALE = 0.01
_INIT_STAY = 4.0
"""Logit advantage with which a fresh residual stream stays itself."""


class Block(Noted):
    """X = mHC(attention); X = mHC(MoE), on n residual streams X [B, T, n, D].  V4 report 2.2."""

    def __init__(
        self, config: ModelConfig, kind: str, ratio: int, numerics: Numerics, *, hashed: bool
    ) -> None:
        super().__init__()
        n, width = config.hc_mult, config.hidden_size
        self.config = config
        self.attn_norm = RMSNorm(width, config.rms_norm_eps)
        self.attn = Attention(config, kind, ratio, numerics)
        self.ffn_norm = RMSNorm(width, config.rms_norm_eps)
        self.ffn = MoE(config, numerics, hashed=hashed)
        self.hc_attn_fn, self.hc_attn_base, self.hc_attn_scale = _mixing_parameters(n, width)
        self.hc_ffn_fn, self.hc_ffn_base, self.hc_ffn_scale = _mixing_parameters(n, width)
        # What forward needs, past nn.Module's lookup, which costs half a microsecond a module and token.
        self._sublayers = self.attn, self.ffn
        self._entries = Kept(self._to_sublayers)
        self._mixing: StreamMixing = {
            "iters": config.hc_sinkhorn_iters,
            "norm_eps": config.rms_norm_eps,
            "eps": config.hc_eps,
        }

    def forward(self, streams: Tensor, batch: ForwardBatch, memory: LayerMemory) -> Tensor:
        """streams [B, T, n, D] -> same."""
        attn, ffn = self._sublayers
        to_attn, to_ffn = self._entries()
        ffn.source.expect(streams, batch.ids)
        inputs = attn.inputs(to_attn, batch)
        plain = batch.operations is kernels and batch.choices is None
        experts = ffn.arguments(batch.ids) if ffn.runs_at_once and plain else None
        if experts is not None and (place := attn.in_place(batch, memory)) is not None:
            return kernels.block(streams, inputs, *place, to_ffn, experts, **self._mixing)
        y, post, comb = attn(streams, inputs, self._mixing, batch, memory)
        if experts is not None:
            return kernels.hc_moe(y, streams, post, comb, to_ffn, experts, **self._mixing)
        streams, x, post, comb = kernels.hc_next(y, streams, post, comb, to_ffn, **self._mixing)
        return kernels.hc_post(ffn(x, batch), streams, post, comb)

    def _to_sublayers(self) -> tuple[StreamEntry, StreamEntry]:
        """How the streams enter attention and the MoE."""
        return (
            (self.hc_attn_fn, self.hc_attn_scale, self.hc_attn_base, self.attn_norm.gain),
            (self.hc_ffn_fn, self.hc_ffn_scale, self.hc_ffn_base, self.ffn_norm.gain),
        )


class HeadCollapse(nn.Module):
    """Mixin of the modules that end in logits: the streams become one, under the checkpoint's hc_head_*
    names."""

    def _add_head_collapse(self, config: ModelConfig) -> None:
        n = config.hc_mult
        self.hc_head_fn = nn.Parameter(torch.randn(n, n * config.hidden_size) * _INIT_SCALE)
        self.hc_head_base = nn.Parameter(torch.full((n,), _even_share(n)))
        self.hc_head_scale = nn.Parameter(torch.full((1,), _INIT_SCALE))

    def collapse(self, streams: Tensor, config: ModelConfig) -> Tensor:
        """streams [B, T, n, D] -> [B, T, D]."""
        return kernels.hc_head(
            streams,
            self.hc_head_fn,
            self.hc_head_scale,
            self.hc_head_base,
            norm_eps=config.rms_norm_eps,
            eps=config.hc_eps,
        )


def _even_share(n: int) -> float:
    """The logit whose sigmoid is 1/n."""
    return -math.log(max(n - 1, 1e-6))


def _mixing_parameters(n: int, width: int) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """fn [(2+n)n, nD], base [(2+n)n], scale [3].  A fresh block reads the streams' mean, adds its output to
    each of them once, and leaves each stream nearly to itself.
    """
    base = torch.cat(
        [torch.full((n,), _even_share(n)), torch.zeros(n), (torch.eye(n) * _INIT_STAY).flatten()]
    )
    fn = torch.randn((2 + n) * n, n * width) * _INIT_SCALE
    return nn.Parameter(fn), nn.Parameter(base), nn.Parameter(torch.full((3,), _INIT_SCALE))
