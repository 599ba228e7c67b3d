"""The whole model: ids in, logits out, with or without a cache, alone, batched or packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.errors import CacheError, CheckpointError, ConfigError, RequestError
from fourfold.model.batch import Choices, ForwardBatch, Routing
from fourfold.model.block import Block, HeadCollapse
from fourfold.model.cache import DEFAULT_MAX_ROLLBACK, Cache
from fourfold.model.experts import Tiers
from fourfold.model.layout import Layout, Segment, packed_rows
from fourfold.model.linear import INIT_STD, RMSNorm, StoredWeight
from fourfold.model.memory import FRESH_LAYER, LayerMemory, fresh_layers
from fourfold.model.mtp import MtpBlock, alone
from fourfold.model.numerics import Kv
from fourfold.model.numerics import numerics as numerics_named
from fourfold.model.paged import PagedCache
from fourfold.model.paged_fixed import FixedLayout, FixedStep
from fourfold.model.paged_layout import PagedLayout, Span
from fourfold.model.paged_shape import Shape
from fourfold.model.rope import inverse_frequencies

if TYPE_CHECKING:
    from fourfold.tokenizer import Tokenizer


@dataclass(frozen=True)
class Output:
    """logits [B, T, V] float32 (T = 1 when only the last were asked for).

    mtp_logits [B, t, V] float32 or None: the last of them guesses the token after the last one given, from
    the position before it; there is one for every given token that has a predecessor.
    hidden_states: the residual streams [B, T, n, D] after each block, or None.
    routing: how each score-routed MoE layer chose, when training.
    """

    logits: Tensor
    mtp_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    routing: tuple[Routing, ...] = ()


class Transformer(HeadCollapse):
    """DeepSeek-V4.  Parameter names are the checkpoint's, routed experts stacked.

    A fresh one has random float32 weights for training; `assign` puts stored weights in their place.
    numerics: "exact", "deployed" or "fast"; kv: how they keep KV, see `load`.  ConfigError: more than one MTP
    block, or one that compresses.
    """

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

    def new_cache(self, batch: int = 1, max_rollback: int = DEFAULT_MAX_ROLLBACK) -> Cache:
        """An empty cache for `batch` sequences that advance together."""
        return Cache(self.config, self, batch, max_rollback)

    @property
    def runs_at_once(self) -> bool:
        """Whether a pass needs nobody but the device: no expert comes from elsewhere, and nothing is
        noted for training."""
        return all(block.ffn.runs_at_once for block in self.layers if isinstance(block, Block))

    @property
    def cache_shape(self) -> Shape:
        """What it keeps of a sequence in a paged cache."""
        return Shape.of(self.config, self.numerics)

    def new_paged_cache(self, *, slots: int, blocks: int, call_tokens: int) -> PagedCache:
        """An empty cache for sequences that come and go; `fourfold.Engine` keeps its books."""
        sizes = {"slots": slots, "blocks": blocks, "call_tokens": call_tokens}
        return PagedCache(self.config, self.cache_shape, self, self.device, **sizes)

    def forward(
        self,
        ids: Tensor,
        cache: Cache | None = None,
        mtp: bool = False,
        hidden_states: bool = False,
        *,
        segments: Tensor | None = None,
        logits: Literal["all", "last"] = "all",
    ) -> Output:
        """ids [B, T] int64.  With a cache the tokens continue what it holds, and autograd is off.

        segments [B, T] int64: packed training samples; equal numbers in a row are one sample, and nothing is
        seen across samples.  RequestError: ids of another shape or type, outside the vocabulary, or beyond
        max_position_embeddings.
        """
        self._check_ids(ids, 0 if cache is None else cache.length)
        if segments is not None and segments.shape != ids.shape:
            raise RequestError(
                f"segments has shape {list(segments.shape)}; allowed: that of ids, {list(ids.shape)}"
            )
        if cache is None:
            samples = torch.zeros_like(ids) if segments is None else segments
            layout = Layout(packed_rows(samples), self.config.sliding_window, ids.device)
            return self._run(ids, layout, fresh_layers(self.config), None, mtp, hidden_states, logits)
        if segments is not None or cache.batch != ids.shape[0]:
            raise CacheError(
                f"the cache holds {cache.batch} sequences, ids has {ids.shape[0]} rows"
                f"{' and segments' if segments is not None else ''}; allowed: one row a sequence, no segments"
            )
        self._check_owner(cache)
        with torch.no_grad():
            segment = cache.segment(ids.shape[1])
            layout = Layout([[segment]] * cache.batch, self.config.sliding_window, ids.device)
            output = self._run(ids, layout, cache.layers, cache, mtp, hidden_states, logits)
        # Only now: a call that fails or is interrupted leaves the cache as it was.
        cache.advance(ids.shape[1], guessed=mtp)
        return output

    def hidden(
        self, ids: Tensor, segments: Tensor, *, mtp: bool = False, operations: Any = kernels
    ) -> tuple[Tensor, Tensor | None, tuple[Routing, ...]]:
        """What the head turns into logits, for losses that never hold all logits of a batch.

        ids, segments [B, T] int64 as in `forward`; returns hidden [B, T, D], the same of the MTP block (it
        guesses the token after the next; undefined at the last token of a sample) or None, and the routing
        when training.  operations: AdaptedOperations, where an adapter is trained.
        """
        layout = Layout(packed_rows(segments), self.config.sliding_window, ids.device)
        batch = self._batch(layout, ids, operations)
        streams = self._through(ids, batch, fresh_layers(self.config))
        guess = None
        if mtp:
            guess = self._guess(streams, ids.roll(-1, dims=1), layout, FRESH_LAYER, batch.routing)
        return self.norm(self.collapse(streams, self.config)), guess, tuple(batch.routing)

    @torch.no_grad()
    def paged(self, ids: Tensor, spans: Sequence[Span], cache: PagedCache, wanted: Tensor) -> Tensor:
        """The next tokens of several sequences of any lengths, in a cache that they share.

        ids [N] int64: the tokens of all spans, one span after the other; wanted [n] int64: places in ids.
        Returns the logits [n, V] f32 after them.  `cache.commit` makes the tokens count.  RequestError,
        CacheError as in `forward`.
        """
        return self.logits(self.paged_streams(ids, spans, cache)[:, wanted])[0]

    @torch.no_grad()
    def paged_streams(
        self,
        ids: Tensor,
        spans: Sequence[Span],
        cache: PagedCache,
        operations: Any = kernels,
        choices: Choices | None = None,
    ) -> Tensor:
        """The same up to the residual streams after the last block, [1, N, M, D], for `logits`.

        operations: AdaptedOperations, where some of these tokens have adapters.  choices: those of the call
        are noted there; the bits are the same.
        """
        self._check_owner(cache)
        self._check_ids(ids[None], max(span.end for span in spans) - len(ids))
        layout = cache.begin(spans)
        ids = ids.to(self.device)
        batch = self._batch(layout, ids[None], operations, choices)
        return self._through(ids[None], batch, cache.layers)

    @torch.no_grad()
    def logits(self, streams: Tensor) -> Tensor:
        """streams [1, n, M, D] -> [1, n, V] f32."""
        return self._logits(streams)

    def fill(self, step: FixedStep, ids: Tensor, spans: Sequence[Span], cache: PagedCache) -> None:
        """The next call of `paged_fixed` is that of these tokens, one of each span.

        ids [n] int64.  Errors as in `paged`.
        """
        self._check_owner(cache)
        self._check_ids(ids[None], max(span.past for span in spans) + 1 - len(ids))
        step.fill(spans, ids.tolist())
        cache.begin_fixed(step)

    @torch.no_grad()
    def paged_fixed(self, step: FixedStep, cache: PagedCache) -> tuple[Tensor, Tensor]:
        """What `paged_streams` computes of the step's tokens, [1, B, M, D], and the logits [B, V] f32.

        Shapes and addresses are those of the step; it asks the device for nothing and brings nothing from the
        host, as far as the device's kernels do.  `cache.commit` makes the tokens count.
        """
        layout, ids = cache.begin_fixed(step), step.part("ids")
        streams = self._through(ids, self._batch(layout, ids), cache.layers)
        return streams.transpose(0, 1), self._logits(streams)[:, 0]

    def draft_shape(self, drafts: int) -> Shape:
        """What the MTP block keeps of a sequence whose last `drafts` tokens others may replace."""
        return Shape.of(alone(self.config), self.numerics).with_longer_window(drafts)

    def new_draft_cache(self, *, slots: int, drafts: int, call_tokens: int) -> PagedCache:
        """An empty cache for `guess`."""
        sizes = {"slots": slots, "blocks": 0, "call_tokens": call_tokens}
        return PagedCache(alone(self.config), self.draft_shape(drafts), self, self.device, **sizes)

    @torch.no_grad()
    def guess(self, streams: Tensor, following: Tensor, spans: Sequence[Span], cache: PagedCache) -> Tensor:
        """One more token by the MTP block, for several sequences that share a draft cache.

        streams [1, N, M, D]: after the last block, or what this gave for the token before; following [N]
        int64: the token after each.  Spans count from any token on, the same one for all calls.
        Returns streams [1, N, M, D] for `guess_logits`.
        """
        self._check_owner(cache)
        return self._mtp_streams(streams, following[None], cache.begin(spans), cache.layers[0], [])

    @torch.no_grad()
    def guess_logits(self, streams: Tensor) -> Tensor:
        """What `guess` gave -> logits [1, N, V] f32 of the tokens after the `following` ones."""
        return self._head(self._mtp_block.hidden(streams))

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

    def _run(
        self,
        ids: Tensor,
        layout: Layout,
        layers: Sequence[LayerMemory],
        cache: Cache | None,
        mtp: bool,
        hidden_states: bool,
        wanted: Literal["all", "last"],
    ) -> Output:
        batch = self._batch(layout, ids)
        states: list[Tensor] = []
        streams = self._through(ids, batch, layers, states if hidden_states else None)
        if cache is not None:
            self._remember(cache, ids, streams)
        guesses = None
        if mtp:
            guesses = self._mtp(ids, streams, layout, cache, batch.routing)
        logits = self._logits(streams[:, -1:] if wanted == "last" else streams)
        kept = tuple(states) if hidden_states else None
        return Output(logits, guesses, kept, tuple(batch.routing))

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

    def _guess(
        self,
        streams: Tensor,
        following: Tensor,
        layout: Layout,
        memory: LayerMemory,
        routing: list[Routing],
    ) -> Tensor:
        """The MTP block's hidden states from the streams at each position and the tokens after them."""
        return self._mtp_block.hidden(self._mtp_streams(streams, following, layout, memory, routing))

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

    def _remember(self, cache: Cache, ids: Tensor, streams: Tensor) -> None:
        """Keep what the MTP block would need if it were asked next time."""
        if cache.mtp is not None:
            cache.mtp.history.reserve(cache.length, ids.shape[1])
            cache.mtp.streams.extend(streams.flatten(-2))
            cache.mtp.ids.extend(ids.unsqueeze(-1))

    def _mtp(
        self, ids: Tensor, streams: Tensor, layout: Layout, cache: Cache | None, routing: list[Routing]
    ) -> Tensor:
        if not self.mtp:
            raise RequestError(
                "mtp=True, but this checkpoint has no MTP block (num_nextn_predict_layers is 0)"
            )
        wanted = ids.shape[1] - 1 if cache is None or cache.length == 0 else ids.shape[1]
        if wanted == 0:
            return torch.empty(ids.shape[0], 0, self.config.vocab_size, device=ids.device)
        memory = FRESH_LAYER
        if cache is None:
            layout = Layout(
                [_without_last(row) for row in layout.rows], self.config.sliding_window, ids.device
            )
            streams, following = streams[:, :-1], ids[:, 1:]
        else:
            assert cache.mtp is not None
            segment = cache.mtp.segment(cache.length, ids.shape[1])
            layout = Layout([[segment]] * cache.batch, self.config.sliding_window, ids.device)
            streams, following = self._recall(cache, segment)
            memory = cache.mtp.layer
        x = self._guess(streams, following, layout, memory, routing)[:, -wanted:]
        return self._head(x)

    def _recall(self, cache: Cache, segment: Segment) -> tuple[Tensor, Tensor]:
        """Streams at the segment's positions and the tokens after them, from the history."""
        memory = cache.mtp
        assert memory is not None
        begin = segment.past - memory.history.start
        here = slice(begin, begin + segment.new)
        streams = memory.streams.held()[:, here].unflatten(-1, (self.config.hc_mult, -1))
        return streams, memory.ids.held()[:, begin + 1 : begin + 1 + segment.new, 0]

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


def _without_last(row: Sequence[Segment]) -> list[Segment]:
    """The row's samples without its last token, which has no successor."""
    *head, last = row
    return [*head, Segment(past=0, new=last.new - 1)] if last.new > 1 else list(head)
