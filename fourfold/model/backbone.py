"""The model's modules, and one pass of tokens through them, whoever keeps what they leave behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.errors import CacheError, CheckpointError, ConfigError, RequestError
from fourfold.model.batch import Choices, ForwardBatch, Routing
from fourfold.model.block import Block, HeadCollapse
from fourfold.model.cache import Cache
from fourfold.model.experts import Tiers
from fourfold.model.layout import Layout
from fourfold.model.linear import INIT_STD, RMSNorm, StoredWeight
from fourfold.model.memory import LayerMemory
from fourfold.model.mtp import MtpBlock
from fourfold.model.numerics import Kv
from fourfold.model.numerics import numerics as numerics_named
from fourfold.model.paged import PagedCache
from fourfold.model.paged_fixed import FixedLayout
from fourfold.model.paged_layout import PagedLayout
from fourfold.model.rope import inverse_frequencies

if TYPE_CHECKING:
    from fourfold.tokenizer import Tokenizer


class Backbone(HeadCollapse):
    """Embedding, blocks, head and MTP block; `Transformer` says how they are called."""

    def __init__(self, config: ModelConfig, numerics: str = "exact", kv: Kv | None = None) -> None:
        super().__init__()
        if config.num_nextn_predict_layers > 1 or any(config.mtp_ratios):
            raise ConfigError(
                f"num_nextn_predict_layers is {config.num_nextn_predict_layers} with compress ratios "
                f"{config.mtp_ratios}; allowed: at most one MTP block, of ratio 0"
            )
        self.config = config
        self.numerics = numerics_named(numerics, kv)
        self.tokenizer: Tokenizer | None = None
        self.tiers: Tiers | None = None
        """What streams the routed experts, where RAM does not hold them all."""
        self.folder: Path | None = None
        """Of the checkpoint that its weights were loaded from."""
        width = config.hidden_size
        self.embed = nn.Embedding(
            config.vocab_size, width, _weight=torch.randn(config.vocab_size, width) * INIT_STD
        )
        self.layers = nn.ModuleList(
            Block(config, kind, ratio, self.numerics, hashed=hashed)
            for kind, ratio, hashed in zip(
                config.layer_kinds, config.layer_ratios, config.hash_layers, strict=True
            )
        )
        self.norm = RMSNorm(width, config.rms_norm_eps)
        self.head = StoredWeight(config.vocab_size, width)
        self._add_head_collapse(config)
        mtp = [MtpBlock(config, self.numerics)] if config.num_nextn_predict_layers else []
        self.mtp = nn.ModuleList(mtp)
        # Computed, not stored: loading onto the meta device must not lose them.
        with torch.device("cpu"):
            self._frequencies = (
                inverse_frequencies(config, compressed=False),
                inverse_frequencies(config, compressed=True),
            )

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def runs_at_once(self) -> bool:
        """Whether a pass needs nobody but the device: no expert comes from elsewhere, and nothing is
        noted for training."""
        return all(block.ffn.runs_at_once for block in self.layers if isinstance(block, Block))

    def assign(self, name: str, tensor: Tensor) -> None:
        """Put a stored tensor in the place of parameter `name`, without a gradient.

        CheckpointError: there is no such parameter.
        """
        path, _, leaf = name.rpartition(".")
        try:
            module = self.get_submodule(path)
        except AttributeError:
            module = None
        if module is not None and leaf in module._buffers:
            module.register_buffer(leaf, tensor)
        elif module is not None and leaf in module._parameters:
            module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            raise CheckpointError(f"{name}: the model has no such parameter")

    def _batch(
        self,
        layout: Layout | PagedLayout | FixedLayout,
        ids: Tensor,
        operations: Any = kernels,
        choices: Choices | None = None,
    ) -> ForwardBatch:
        if self._frequencies[0].device != ids.device:
            self._frequencies = (self._frequencies[0].to(ids.device), self._frequencies[1].to(ids.device))
        return ForwardBatch(layout, ids, self._frequencies, operations, choices)

    def _embed(self, ids: Tensor) -> Tensor:
        """[B, T] -> the n equal residual streams [B, T, n, D]."""
        x = self.embed(ids).to(self.numerics.dtype)
        return x.unsqueeze(-2).expand(*x.shape[:-1], self.config.hc_mult, x.shape[-1])

    def _through(
        self,
        ids: Tensor,
        batch: ForwardBatch,
        layers: Sequence[LayerMemory],
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """The streams after the last block; those after each block go to `states`."""
        streams = self._embed(ids)
        for block, memory in zip(self.layers, layers, strict=True):
            streams = block(streams, batch, memory)
            if states is not None:
                states.append(streams)
        return streams

    def _mtp_streams(
        self,
        streams: Tensor,
        following: Tensor,
        layout: Layout | PagedLayout,
        memory: LayerMemory,
        routing: list[Routing],
    ) -> Tensor:
        batch = self._batch(layout, following)
        batch.routing = routing
        embedded = self.embed(following).to(self.numerics.dtype)
        return self._mtp_block.advance(streams, embedded, batch, memory)

    @property
    def _mtp_block(self) -> MtpBlock:
        block = self.mtp[0]
        assert isinstance(block, MtpBlock)
        return block

    def _logits(self, streams: Tensor) -> Tensor:
        x = self.norm(self.collapse(streams, self.config))
        return self._head(x)

    def _head(self, x: Tensor) -> Tensor:
        return kernels.linear(x.float(), self.head.weight, self.head.scale, self.numerics.rounding)

    def _check_owner(self, cache: Cache | PagedCache) -> None:
        if cache.owner is not self:
            raise CacheError("this cache belongs to another model; make one with this model's new_cache()")

    def _check_ids(self, ids: Tensor, past: int) -> None:
        if ids.dim() != 2 or ids.dtype != torch.int64 or ids.numel() == 0:
            raise RequestError(
                f"ids has shape {list(ids.shape)} and dtype {ids.dtype}; "
                "allowed: [B, T] int64, at least one token"
            )
        if past + ids.shape[1] > self.config.max_position_embeddings:
            raise RequestError(
                f"{past} + {ids.shape[1]} tokens exceed max_position_embeddings "
                f"({self.config.max_position_embeddings}); shorten the prompt"
            )
        # As plain numbers: for the one token of a decode step that is the cheapest look.
        values = ids.flatten().cpu().tolist()
        low, high = min(values), max(values)
        if low < 0 or high >= self.config.vocab_size:
            raise RequestError(
                f"ids range from {low} to {high}; allowed: 0 to {self.config.vocab_size - 1} (vocab_size - 1)"
            )
