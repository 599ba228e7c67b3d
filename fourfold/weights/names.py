"""Which tensors a V4 model has: their official names, shapes and kinds; and how parameters are named.

A parameter has its checkpoint's official name, except that the routed experts of a layer are stacked:
tensor `layers.3.ffn.experts.7.w1.weight` [O, I] is row 7 of `layers.3.ffn.experts.w1.weight` [E, O, I].
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fourfold.config import ModelConfig

Kind = Literal["expert", "linear", "bf16", "f32", "int"]

_EXPERT = re.compile(r"(?P<layer>.+\.ffn\.experts)\.(?P<index>\d+)\.(?P<rest>w[123]\.(?:weight|scale))")
_SUFFIXES = {
    ".weight_scale_inv": ".scale", ".weight_scale": ".scale", ".scale_inv": ".scale", ".scale_bias": ".bias",
}  # fmt: skip
COPIES = {"embed.weight": "mtp.0.emb.tok_emb.weight", "head.weight": "mtp.0.head.weight"}
"""Tensors that some converters store a second time, in the MTP block."""


@dataclass(frozen=True)
class TensorSpec:
    """Logical shape (FP4 counts values, not bytes) and kind of a tensor.

    Kinds: "expert" (routed: FP4, or FP8 in Base), "linear" (FP8), both with a scale beside them and both
    possibly left in bf16 or f32, or converted to int8 (experts: or int4); "bf16", "f32" and "int" are never
    quantised.
    """

    shape: tuple[int, ...]
    kind: Kind


def canonical(name: str) -> str:
    """The official spelling: without a leading `model.`, and `.scale` for a scale by any other name."""
    name = name.removeprefix("model.")
    for suffix, official in _SUFFIXES.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix) + official
    return name


def parameter_of(name: str) -> tuple[str, int | None]:
    """Checkpoint name -> (parameter name, expert index or None); the name may be an older spelling."""
    name = canonical(name)
    if match := _EXPERT.fullmatch(name):
        return f"{match['layer']}.{match['rest']}", int(match["index"])
    return name, None


def scale_name(name: str) -> str:
    """Official name of the scale that belongs to the weight `name`."""
    return beside(name, "scale")


def beside(name: str, leaf: str) -> str:
    """Name of what belongs to the weight `name`: its scale, its bias, its weight_offset."""
    assert name.endswith(".weight"), name
    return f"{name.removesuffix('weight')}{leaf}"


def checkpoint_spec(config: ModelConfig) -> dict[str, TensorSpec]:
    """Every tensor but the scales, by official name, in the order of the layers."""
    spec = {"embed.weight": TensorSpec((config.vocab_size, config.hidden_size), "bf16")}
    for i in range(config.num_hidden_layers):
        kind, ratio, hashed = config.layer_kinds[i], config.layer_ratios[i], config.hash_layers[i]
        spec.update(_block(config, f"layers.{i}", kind, ratio, hashed))
    for i in range(config.num_nextn_predict_layers):
        spec.update(_mtp(config, f"mtp.{i}"))
    spec["norm.weight"] = TensorSpec((config.hidden_size,), "bf16")
    spec.update(_head_collapse(config, ""))
    spec["head.weight"] = TensorSpec((config.vocab_size, config.hidden_size), "bf16")
    return spec


def _head_collapse(config: ModelConfig, prefix: str) -> Iterator[tuple[str, TensorSpec]]:
    streams = config.hc_mult
    yield f"{prefix}hc_head_fn", TensorSpec((streams, streams * config.hidden_size), "f32")
    yield f"{prefix}hc_head_base", TensorSpec((streams,), "f32")
    yield f"{prefix}hc_head_scale", TensorSpec((1,), "f32")


def _block(
    config: ModelConfig, prefix: str, kind: str, ratio: int, hashed: bool
) -> Iterator[tuple[str, TensorSpec]]:
    width, streams = config.hidden_size, config.hc_mult
    mixes = (2 + streams) * streams
    for sublayer in ("attn", "ffn"):
        yield f"{prefix}.{sublayer}_norm.weight", TensorSpec((width,), "bf16")
        yield f"{prefix}.hc_{sublayer}_fn", TensorSpec((mixes, streams * width), "f32")
        yield f"{prefix}.hc_{sublayer}_base", TensorSpec((mixes,), "f32")
        yield f"{prefix}.hc_{sublayer}_scale", TensorSpec((3,), "f32")
    yield from _attention(config, f"{prefix}.attn", kind, ratio)
    yield from _moe(config, f"{prefix}.ffn", hashed)


def _attention(config: ModelConfig, prefix: str, kind: str, ratio: int) -> Iterator[tuple[str, TensorSpec]]:
    width, rank = config.hidden_size, config.q_lora_rank
    heads, dim = config.num_attention_heads, config.head_dim
    low = config.o_groups * config.o_lora_rank
    yield f"{prefix}.wq_a.weight", TensorSpec((rank, width), "linear")
    yield f"{prefix}.q_norm.weight", TensorSpec((rank,), "bf16")
    yield f"{prefix}.wq_b.weight", TensorSpec((heads * dim, rank), "linear")
    yield f"{prefix}.wkv.weight", TensorSpec((dim, width), "linear")
    yield f"{prefix}.kv_norm.weight", TensorSpec((dim,), "bf16")
    yield f"{prefix}.wo_a.weight", TensorSpec((low, heads * dim // config.o_groups), "linear")
    yield f"{prefix}.wo_b.weight", TensorSpec((width, low), "linear")
    yield f"{prefix}.attn_sink", TensorSpec((heads,), "f32")
    if kind != "swa":
        yield from _compressor(f"{prefix}.compressor", width, dim, ratio, overlapping=kind == "csa")
    if kind == "csa":
        index_heads, index_dim = config.index_n_heads, config.index_head_dim
        yield f"{prefix}.indexer.wq_b.weight", TensorSpec((index_heads * index_dim, rank), "linear")
        yield f"{prefix}.indexer.weights_proj.weight", TensorSpec((index_heads, width), "bf16")
        yield from _compressor(f"{prefix}.indexer.compressor", width, index_dim, ratio, overlapping=True)


def _compressor(
    prefix: str, width: int, dim: int, ratio: int, *, overlapping: bool
) -> Iterator[tuple[str, TensorSpec]]:
    # An overlapping compressor has one set of channels for its own block and one for the next block's entry.
    channels = 2 * dim if overlapping else dim
    yield f"{prefix}.wkv.weight", TensorSpec((channels, width), "bf16")
    yield f"{prefix}.wgate.weight", TensorSpec((channels, width), "bf16")
    yield f"{prefix}.ape", TensorSpec((ratio, channels), "f32")
    yield f"{prefix}.norm.weight", TensorSpec((dim,), "bf16")


def _moe(config: ModelConfig, prefix: str, hashed: bool) -> Iterator[tuple[str, TensorSpec]]:
    width, inner, experts = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
    yield f"{prefix}.gate.weight", TensorSpec((experts, width), "bf16")
    if hashed:
        yield f"{prefix}.gate.tid2eid", TensorSpec((config.vocab_size, config.num_experts_per_tok), "int")
    else:
        yield f"{prefix}.gate.bias", TensorSpec((experts,), "f32")
    shapes = {"w1": (inner, width), "w3": (inner, width), "w2": (width, inner)}
    for matrix, shape in shapes.items():
        yield f"{prefix}.shared_experts.{matrix}.weight", TensorSpec(shape, "linear")
    for expert in range(experts):
        for matrix, shape in shapes.items():
            yield f"{prefix}.experts.{expert}.{matrix}.weight", TensorSpec(shape, "expert")


def _mtp(config: ModelConfig, prefix: str) -> Iterator[tuple[str, TensorSpec]]:
    width = config.hidden_size
    for name in ("enorm", "hnorm", "norm"):
        yield f"{prefix}.{name}.weight", TensorSpec((width,), "bf16")
    for name in ("e_proj", "h_proj"):
        yield f"{prefix}.{name}.weight", TensorSpec((width, width), "linear")
    yield from _block(config, prefix, "swa", 0, hashed=False)
    yield from _head_collapse(config, f"{prefix}.")
