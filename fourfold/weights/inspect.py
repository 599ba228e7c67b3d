"""What a checkpoint is: layers, parameters, bytes by part and format, KV; from headers or config alone."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fourfold.config import ModelConfig
from fourfold.config_keys import KINDS
from fourfold.kernels.formats import row_bytes
from fourfold.weights.formats import Format, scale_shape
from fourfold.weights.hub import resolve
from fourfold.weights.layout import SINGLE, check_layout, find_index
from fourfold.weights.names import Kind, checkpoint_spec
from fourfold.weights.recipes import recipe_format

KV_LENGTHS = {"1k": 1 << 10, "128k": 1 << 17, "1M": 1 << 20}
"""Contexts, in tokens, for which the size of the KV cache is reported."""

_BYTES: dict[Format, float] = {
    "fp4": 0.5, "fp8": 1.0, "int8": 1.0, "int4": 0.5, "bf16": 2.0, "f32": 4.0, "int": 8.0,
}  # fmt: skip
_RECIPES: dict[str | None, str] = {"int8": "w8a8", "int4": "w4a8"}
"""What the experts' format says of all the others."""
_PUBLISHED: dict[Kind, Format] = {
    "expert": "fp4", "linear": "fp8", "bf16": "bf16", "f32": "f32", "int": "int",
}  # fmt: skip
Part = Literal["embedding", "dense", "head", "experts", "mtp dense", "mtp experts"]
"""How often a token meets a weight: one row of it, always (dense and head), if it is routed there, or only
when the MTP block drafts."""

_NOT_STATED = "not stated (counted as fp4)"


@dataclass(frozen=True, kw_only=True)
class CheckpointReport:
    """What `inspect_checkpoint` found.

    has_weights: False if only a config.json was there; formats are then the published ones, and experts
    whose format it does not state are counted as FP4 under a name of their own.
    layers: main layers by kind ("swa", "csa", "hca").  hash_layers: those routed by token id.
    parameters_total: of the main model with embedding and head; parameters_active: those that take part in
    a token, without the embedding it looks up; parameters_mtp: of the MTP blocks, in neither.
    bytes_by_format: of the weights, scales and integers; bytes_total: their sum.
    bytes_per_token: weights and scales that decoding one token of one sequence reads, without MTP.
    kv_bytes: {"published" | "bf16": {"1k" | "128k" | "1M": bytes of one sequence's cache}}.
    """

    path: str
    has_weights: bool
    files: int
    tensors: int
    layers: dict[str, int]
    hash_layers: int
    mtp_layers: int
    vocab_size: int
    hidden_size: int
    experts: int
    experts_per_token: int
    max_position_embeddings: int
    expert_format: str
    parameters_total: int
    parameters_active: int
    parameters_mtp: int
    bytes_total: int
    bytes_by_format: dict[str, int]
    bytes_per_token: int
    kv_bytes: dict[str, dict[str, int]]

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object; keys are the fields."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class PartSize:
    """Parameters, and the bytes of weights and scales, of one part in one format."""

    parameters: int
    bytes: int


@dataclass(frozen=True)
class _Weight:
    """A weight with its place in the sums: `shape` logical, sizes in bytes."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    format: str
    weight_bytes: int
    scale_bytes: int

    @property
    def parameters(self) -> int:
        return 0 if self.kind == "int" else math.prod(self.shape)


def inspect_checkpoint(path: Path | str) -> CheckpointReport:
    """Report on a checkpoint folder, a repository id, or a bare config.json (file or folder).

    Reads headers only.  Raises ConfigError or CheckpointError if the checkpoint would not load.
    """
    file = Path(path)
    folder = None if file.is_file() else resolve(path)
    config = ModelConfig.from_file(folder or file)
    weights, files = _weights(folder, config)
    return _report(str(path), config, weights, files)


def part_sizes(config: ModelConfig, folder: Path | None = None) -> dict[tuple[Part, str], PartSize]:
    """Sizes by part and format: of the weights in `folder`, or of a published checkpoint of this config.

    Integers (`tid2eid`) have format "int" and no parameters.  Raises CheckpointError if the folder would not
    load.
    """
    sizes: dict[tuple[Part, str], PartSize] = {}
    for weight in _weights(folder, config)[0]:
        key = (_part(weight), weight.format)
        before = sizes.get(key, PartSize(0, 0))
        sizes[key] = PartSize(
            before.parameters + weight.parameters,
            before.bytes + weight.weight_bytes + weight.scale_bytes,
        )
    return sizes


def kv_bytes(config: ModelConfig, tokens: int, *, published: bool) -> int:
    """Bytes of one sequence's KV cache after `tokens` tokens: window, compressed entries and index keys.

    published: FP8 with a scale byte per 64 and bf16 RoPE dims, FP4 index keys with a scale byte per 32;
    otherwise bf16.  The MTP blocks' windows count; a compressor's few pending tokens do not.
    """
    entry, index = _entry_bytes(config, published)
    window = min(tokens, config.sliding_window) * entry
    total = window * (config.num_hidden_layers + config.num_nextn_predict_layers)
    for kind, ratio in zip(config.layer_kinds, config.layer_ratios, strict=True):
        if kind != "swa":
            total += tokens // ratio * (entry + (index if kind == "csa" else 0))
    return total


def kv_read_bytes(config: ModelConfig, tokens: int, *, published: bool) -> int:
    """Bytes of its KV cache that decoding one token of a sequence of `tokens` tokens reads.

    Every layer reads its window; an HCA layer all its entries; a CSA layer all its index keys and the
    index_topk entries that they choose.  The MTP blocks are not run.
    """
    entry, index = _entry_bytes(config, published)
    total = 0
    for attended, scored in attended_entries(config, tokens):
        total += attended * entry + scored * index
    return total


def attended_entries(config: ModelConfig, tokens: int) -> list[tuple[int, int]]:
    """By main layer: entries (window and compressed) that one token attends to, and index keys it scores."""
    layers = []
    for kind, ratio in zip(config.layer_kinds, config.layer_ratios, strict=True):
        entries = 0 if kind == "swa" else tokens // ratio
        scored = entries if kind == "csa" else 0
        chosen = min(entries, config.index_topk) if kind == "csa" else entries
        layers.append((min(tokens, config.sliding_window) + chosen, scored))
    return layers


def _entry_bytes(config: ModelConfig, published: bool) -> tuple[int, int]:
    """Bytes of a stored entry and of an index key."""
    dim, rope, index_dim = config.head_dim, config.qk_rope_head_dim, config.index_head_dim
    if not published:
        return 2 * dim, 2 * index_dim
    return row_bytes(dim, rope, 8), row_bytes(index_dim, 0, 4)


def _weights(folder: Path | None, config: ModelConfig) -> tuple[list[_Weight], int]:
    """The weights of a folder that has some, else the expected ones; and how many files hold them."""
    if folder is not None and ((folder / SINGLE).exists() or find_index(folder) is not None):
        return _stored(folder, config)
    return _expected(config), 0


def _stored(folder: Path, config: ModelConfig) -> tuple[list[_Weight], int]:
    weights, files = [], set()
    for entry in check_layout(folder, config).values():
        scale = 0 if entry.scale is None else entry.scale.nbytes
        files |= {entry.weight.file} | ({entry.scale.file} if entry.scale is not None else set())
        shape, kind = entry.spec.shape, entry.spec.kind
        weights.append(_Weight(entry.name, kind, shape, entry.format, entry.weight.nbytes, scale))
    return weights, len(files)


def _expected(config: ModelConfig) -> list[_Weight]:
    """The weights that a published or converted checkpoint of this config would have."""
    stated: dict[str | None, Format] = {fmt: fmt for fmt in _BYTES}
    formats = _PUBLISHED | {"expert": stated.get(config.expert_dtype, _PUBLISHED["expert"])}
    weights = []
    recipe = _RECIPES.get(config.expert_dtype)
    for name, spec in checkpoint_spec(config).items():
        converted = None if recipe is None else recipe_format(recipe, name, spec)
        fmt = converted or formats[spec.kind]
        scale = math.prod(scale_shape(spec.shape, fmt) or (0,))
        size = int(math.prod(spec.shape) * _BYTES[fmt])
        label = _NOT_STATED if spec.kind == "expert" and config.expert_dtype is None else fmt
        weights.append(_Weight(name, spec.kind, spec.shape, label, size, scale))
    return weights


def _report(path: str, config: ModelConfig, weights: list[_Weight], files: int) -> CheckpointReport:
    by_format: Counter[str] = Counter()
    parameters: Counter[Part] = Counter()
    read: Counter[Part] = Counter()
    for weight in weights:
        by_format[weight.format] += weight.weight_bytes
        by_format["scale"] += weight.scale_bytes
        part = _part(weight)
        parameters[part] += weight.parameters
        read[part] += weight.weight_bytes + weight.scale_bytes
    chosen, experts_a_layer = config.num_experts_per_tok, config.n_routed_experts
    always = parameters["dense"] + parameters["head"]
    experts = sorted({weight.format for weight in weights if weight.kind == "expert"})
    return CheckpointReport(
        path=path,
        has_weights=files > 0,
        files=files,
        tensors=len(weights) + sum(weight.scale_bytes > 0 for weight in weights),
        layers={kind: config.layer_kinds.count(kind) for kind in KINDS},
        hash_layers=sum(config.hash_layers),
        mtp_layers=config.num_nextn_predict_layers,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        experts=config.n_routed_experts,
        experts_per_token=config.num_experts_per_tok,
        max_position_embeddings=config.max_position_embeddings,
        expert_format=" and ".join(experts),
        parameters_total=parameters["embedding"] + always + parameters["experts"],
        parameters_active=always + parameters["experts"] * chosen // experts_a_layer,
        parameters_mtp=parameters["mtp dense"] + parameters["mtp experts"],
        bytes_total=by_format.total(),
        bytes_by_format={fmt: size for fmt, size in by_format.most_common() if size},
        bytes_per_token=read["dense"] + read["head"] + read["experts"] * chosen // experts_a_layer,
        kv_bytes={
            name: {
                length: kv_bytes(config, n, published=name == "published") for length, n in KV_LENGTHS.items()
            }
            for name in ("published", "bf16")
        },
    )


def _part(weight: _Weight) -> Part:
    if weight.name.startswith("mtp."):
        return "mtp experts" if weight.kind == "expert" else "mtp dense"
    if weight.name == "embed.weight" or weight.kind == "int":
        return "embedding"  # looked up by token id, a row at a time, as the embedding is
    if weight.name == "head.weight":
        return "head"
    return "experts" if weight.kind == "expert" else "dense"
