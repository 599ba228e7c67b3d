"""The yardstick: a plain dense transformer with as many active parameters as a V4 model.

Pre-norm blocks of causal attention with RoPE and SwiGLU, one residual stream, untied head. It exists to be
compared with, so it has no cache, no export and no options.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourfold.config import ModelConfig

ROPE_THETA = 10000.0


def _positions(segments: Tensor) -> Tensor:
    """Position of each token in its segment.  segments [B, T] -> int64 [B, T]."""
    index = torch.arange(segments.size(1), device=segments.device).expand_as(segments)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values


class DenseBlock(nn.Module):
    """x + attention(norm(x)), then x + swiglu(norm(x))."""

    def __init__(self, width: int, heads: int, inner: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.attn_norm = nn.RMSNorm(width, eps)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, eps)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, D]; cos, sin [B, 1, T, C/2]; mask [B, 1, T, T] bool, True where visible."""
        q, k, v = self.qkv(self.attn_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = _turn(q, cos, sin), _turn(k, cos, sin)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(seen.transpose(1, 2).flatten(-2))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1).to(x.dtype)


class Dense(nn.Module):
    """ids, segments [B, T] -> hidden [B, T, D] before the head (`head.weight` [V, D])."""

    def __init__(self, like: ModelConfig, active: int) -> None:
        """like: the V4 model to match in width, depth, heads and words; active: its active parameters."""
        super().__init__()
        width, layers = like.hidden_size, like.num_hidden_layers
        per_layer = (active - 2 * like.vocab_size * width) // layers
        inner = max(64, round((per_layer - 4 * width * width) / (3 * width) / 64) * 64)
        self.embed = nn.Embedding(like.vocab_size, width)
        self.layers = nn.ModuleList(
            DenseBlock(width, like.num_attention_heads, inner, like.rms_norm_eps) for _ in range(layers)
        )
        self.norm = nn.RMSNorm(width, like.rms_norm_eps)
        self.head = nn.Linear(width, like.vocab_size, bias=False)
        self.head_dim = width // like.num_attention_heads

    def forward(self, ids: Tensor, segments: Tensor) -> Tensor:
        """Each token sees the tokens before it in its own segment."""
        angle = _positions(segments).unsqueeze(-1) * ROPE_THETA ** -(
            torch.arange(0, self.head_dim, 2, device=ids.device) / self.head_dim
        )
        cos, sin = angle.cos().unsqueeze(1), angle.sin().unsqueeze(1)
        causal = torch.ones(ids.size(1), ids.size(1), dtype=torch.bool, device=ids.device).tril()
        mask = ((segments.unsqueeze(2) == segments.unsqueeze(1)) & causal).unsqueeze(1)
        x = self.embed(ids)
        for block in self.layers:
            x = block(x, cos, sin, mask)
        return self.norm(x)
