"""The teacher: a Qwen2 GGUF file as a plain torch model with a static key/value cache.

The weights are dequantised once to bf16; a forward call takes any set of cache rows, so that
finished rows can be refilled while the others go on. Letters are those of docs/notation.md:
B sequences, T tokens of a sequence in this call, S stored entries, D width, H heads, C head width,
G key/value heads, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL, USER_DEFINED = 3, 4


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The numbers of the GGUF header that the forward pass needs."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    norm_eps: float
    rope_theta: float

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class PackedLinear:
    """`x @ weight.T` with the weight kept in the blocked layout that oneDNN prefers on this CPU."""

    def __init__(self, weight: Tensor, rows: int) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, "none", [], "")


def read_fields(reader: Any) -> dict[str, Any]:
    """Header fields of a GGUF file that we use; the chat template is left out."""
    wanted = ("general", "qwen2", "tokenizer.ggml")
    names = [n for n in reader.fields if n.startswith(wanted) and "template" not in n]
    return {name: reader.fields[name].contents() for name in names}


def build_tokenizer(fields: dict[str, Any]) -> Tokenizer:
    """The teacher's own byte-level BPE, rebuilt from the GGUF header."""
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """Only the tokenizer of a GGUF file."""
    from gguf import GGUFReader

    return build_tokenizer(read_fields(GGUFReader(path)))


def rope_table(config: TeacherConfig, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each [length, C] fp32, halves repeated (the rotate-half convention)."""
    width = config.head_width
    rate = config.rope_theta ** (-torch.arange(0, width, 2).float() / width)
    angle = torch.arange(length).float()[:, None] * rate
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


class Teacher:
    """Qwen2 with `rows` cache rows of `length` positions, bf16.

    keep: teacher ids whose head rows are kept, [V]; None keeps all. Slicing the head both masks
    the sampling to those tokens and makes the head cheap.
    """

    def __init__(self, path: Path, *, rows: int, length: int, keep: Tensor | None = None) -> None:
        from gguf import GGUFReader, dequantize

        reader = GGUFReader(path)
        fields = read_fields(reader)
        weights = {
            t.name: torch.from_numpy(dequantize(t.data, t.tensor_type)).to(torch.bfloat16)
            for t in reader.tensors
        }
        self.config = TeacherConfig(
            layers=fields["qwen2.block_count"],
            width=fields["qwen2.embedding_length"],
            heads=fields["qwen2.attention.head_count"],
            kv_heads=fields["qwen2.attention.head_count_kv"],
            norm_eps=fields["qwen2.attention.layer_norm_rms_epsilon"],
            rope_theta=fields["qwen2.rope.freq_base"],
        )
        self.tokenizer = build_tokenizer(fields)
        self.embedding = weights["token_embd.weight"]
        head = weights.get("output.weight", self.embedding)
        self.keep = torch.arange(len(head)) if keep is None else keep
        self.head = PackedLinear(head[self.keep].contiguous(), rows)
        self.norm = weights["output_norm.weight"]
        self.layers = [self._layer(weights, i, rows) for i in range(self.config.layers)]
        self.cos, self.sin = (t.bfloat16() for t in rope_table(self.config, length))
        shape = (rows, self.config.kv_heads, length, self.config.head_width)
        self.keys = [torch.zeros(shape, dtype=torch.bfloat16) for _ in self.layers]
        self.values = [torch.zeros(shape, dtype=torch.bfloat16) for _ in self.layers]
        self.rows, self.length = rows, length

    @staticmethod
    def _layer(weights: dict[str, Tensor], index: int, rows: int) -> dict[str, Any]:
        def get(*names: str) -> Tensor:
            return torch.cat([weights.pop(f"blk.{index}.{name}") for name in names])

        return {
            "attn_norm": get("attn_norm.weight"),
            "qkv": PackedLinear(get("attn_q.weight", "attn_k.weight", "attn_v.weight"), rows),
            "qkv_bias": get("attn_q.bias", "attn_k.bias", "attn_v.bias"),
            "out": PackedLinear(get("attn_output.weight"), rows),
            "ffn_norm": get("ffn_norm.weight"),
            "gate_up": PackedLinear(get("ffn_gate.weight", "ffn_up.weight"), rows),
            "down": PackedLinear(get("ffn_down.weight"), rows),
        }

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.config.norm_eps)

    def _rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [B, H, T, C]; cos, sin: [B, 1, T, C]."""
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin

    @torch.inference_mode()
    def forward(self, ids: Tensor, positions: Tensor, slots: Tensor, last: Tensor) -> Tensor:
        """Logits of one token per row, fp32 [B, V] over the kept tokens; fills the cache.

        ids, positions: [B, T] int64; slots: [B] cache rows, all of them or some;
        last: [B], which of the T tokens is the row's last (the rest is padding, whose cache
        entries are overwritten before anything attends to them).
        """
        config, (B, T) = self.config, ids.shape
        H, G, C = config.heads, config.kv_heads, config.head_width
        S = int(positions.max()) + 1
        everything = self.rows == B
        stored = torch.arange(S)
        mask = stored.le(positions[:, :, None])[:, None]  # [B, 1, T, S]
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        where = (slots[:, None, None], torch.arange(G)[None, :, None], positions[:, None, :])
        x = self.embedding[ids]
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            qkv = layer["qkv"](self._norm(x, layer["attn_norm"]), layer["qkv_bias"])
            q, k, v = qkv.view(B, T, H + 2 * G, C).transpose(1, 2).split([H, G, G], dim=1)
            keys[where] = self._rope(k, cos, sin)
            values[where] = v
            k, v = (keys, values) if everything else (keys[slots], values[slots])
            # The H/G query heads of a group are folded into the time axis: no copies of k and v.
            q = self._rope(q, cos, sin).reshape(B, G, H // G * T, C)
            fold = mask.repeat(1, 1, H // G, 1) if T > 1 else mask
            y = F.scaled_dot_product_attention(q, k[:, :, :S], v[:, :, :S], attn_mask=fold)
            x = x + layer["out"](y.view(B, H, T, C).transpose(1, 2).reshape(B, T, H * C))
            gate, up = layer["gate_up"](self._norm(x, layer["ffn_norm"])).chunk(2, dim=-1)
            x = x + layer["down"](F.silu(gate) * up)
        x = x[torch.arange(B), last]
        return self.head(self._norm(x, self.norm)).float()
