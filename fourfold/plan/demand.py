"""What a model asks of the hardware: bytes that lie there, bytes and operations of a step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fourfold.config import ModelConfig
from fourfold.weights.inspect import Part, PartSize, attended_entries, kv_bytes, kv_read_bytes, part_sizes


@dataclass(frozen=True, kw_only=True)
class Demand:
    """A model's sizes.  Bytes include scales.

    resident_bytes: all that is not a routed expert (embedding, dense, head, MTP without its experts);
    expert_bytes: routed experts of the main layers; mtp_expert_bytes: of the MTP block; one_expert_bytes.
    dense_bytes: read in every step (no embedding); head_bytes: of them, the output head.
    read_by_format: of what one token of one sequence reads, by format, the head apart.
    dense_parameters (without the head), head_parameters, expert_parameters: of the main layers.
    kv: how its cache is stored.
    """

    config: ModelConfig
    parameters_total: int
    parameters_active: int
    total_bytes: int
    resident_bytes: int
    expert_bytes: int
    mtp_expert_bytes: int
    one_expert_bytes: int
    dense_bytes: int
    head_bytes: int
    read_by_format: dict[str, int]
    dense_parameters: int
    head_parameters: int
    expert_parameters: int
    kv: Literal["published", "bf16"] = "bf16"

    @classmethod
    def of(cls, config: ModelConfig, folder: Path | None = None) -> Demand:
        """Of the weights in `folder`, or of a published checkpoint of this config."""
        sizes = part_sizes(config, folder)
        parameters = {part: _sum(sizes, part).parameters for part in _PARTS}
        stored = {part: _sum(sizes, part).bytes for part in _PARTS}
        share = config.num_experts_per_tok / config.n_routed_experts
        always = parameters["dense"] + parameters["head"]
        return cls(
            config=config,
            parameters_total=parameters["embedding"] + always + parameters["experts"],
            parameters_active=always + round(parameters["experts"] * share),
            total_bytes=sum(stored.values()),
            resident_bytes=sum(stored[part] for part in ("embedding", "dense", "head", "mtp dense")),
            expert_bytes=stored["experts"],
            mtp_expert_bytes=stored["mtp experts"],
            one_expert_bytes=stored["experts"] // (config.num_hidden_layers * config.n_routed_experts),
            dense_bytes=stored["dense"] + stored["head"],
            head_bytes=stored["head"],
            read_by_format=_read_by_format(sizes, share),
            dense_parameters=parameters["dense"],
            head_parameters=parameters["head"],
            expert_parameters=parameters["experts"],
        )

    def experts_met(self, tokens: int) -> float:
        """Of a layer's routed experts, the share that `tokens` tokens of one step meet.

        1 - (1 - K/E)^tokens: the expectation if each token chooses K of E evenly and on its own, hash and
        score routing alike.
        """
        return 1 - (1 - self.config.num_experts_per_tok / self.config.n_routed_experts) ** tokens

    def expert_read(self, tokens: int) -> float:
        """Bytes of routed experts that a step of `tokens` tokens reads."""
        return self.expert_bytes * self.experts_met(tokens)

    def product_operations(self, *, head: bool) -> float:
        """Operations of one token in products with weights, 2 a parameter.

        head: whether logits are made (prefill makes them for its last token alone).
        """
        share = self.config.num_experts_per_tok / self.config.n_routed_experts
        always = self.dense_parameters + (self.head_parameters if head else 0)
        return 2.0 * (always + self.expert_parameters * share)

    def attention_operations(self, context: int) -> float:
        """Operations of one token after `context` others in attention and indexer."""
        config = self.config
        attention = 0
        for attended, scored in attended_entries(config, context + 1):
            # Scores and the weighted sum over entries of all heads, then the indexer's scores.
            attention += 2 * attended * config.num_attention_heads * config.head_dim
            attention += scored * config.index_n_heads * config.index_head_dim
        return 2.0 * attention

    def stream_bytes(self) -> int:
        """Bytes of one token's residual streams, float32, over all layers."""
        return 4 * self.config.num_hidden_layers * self.config.hc_mult * self.config.hidden_size

    def kv_size(self, context: int) -> int:
        """Bytes of one sequence's KV cache."""
        return kv_bytes(self.config, context, published=self.kv == "published")

    def kv_read(self, context: int) -> int:
        """Bytes of it that one decoded token reads."""
        return kv_read_bytes(self.config, context, published=self.kv == "published")


_PARTS: tuple[Part, ...] = ("embedding", "dense", "head", "experts", "mtp dense", "mtp experts")


def _sum(sizes: dict[tuple[Part, str], PartSize], part: Part) -> PartSize:
    chosen = [size for (name, _), size in sizes.items() if name == part]
    return PartSize(sum(size.parameters for size in chosen), sum(size.bytes for size in chosen))


def _read_by_format(sizes: dict[tuple[Part, str], PartSize], share: float) -> dict[str, int]:
    """Bytes that one token reads, as in a checkpoint's description: experts, dense by format, head."""
    read = {}
    for (part, fmt), size in sizes.items():
        if part == "experts":
            read[f"experts {fmt}"] = round(size.bytes * share)
        elif part in ("dense", "head"):
            read[f"{part} {fmt}"] = size.bytes
    return dict(sorted(read.items(), key=lambda item: -item[1]))
