"""The whole model: ids in, logits out, with or without a cache, alone, batched or packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fourfold import kernels
from fourfold.errors import CacheError, RequestError
from fourfold.model.backbone import Backbone
from fourfold.model.batch import Choices, Routing
from fourfold.model.cache import DEFAULT_MAX_ROLLBACK, Cache
from fourfold.model.layout import Layout, Segment, packed_rows
from fourfold.model.memory import FRESH_LAYER, LayerMemory, fresh_layers
from fourfold.model.mtp import alone
from fourfold.model.paged import PagedCache
from fourfold.model.paged_fixed import FixedStep
from fourfold.model.paged_layout import Span
from fourfold.model.paged_shape import Shape


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


class Transformer(Backbone):
    """DeepSeek-V4.  Parameter names are the checkpoint's, routed experts stacked.

    A fresh one has random float32 weights for training; `assign` puts stored weights in their place.
    numerics: "exact", "deployed" or "fast"; kv: how they keep KV, see `load`.  ConfigError: more than one MTP
    block, or one that compresses.
    """

    def new_cache(self, batch: int = 1, max_rollback: int = DEFAULT_MAX_ROLLBACK) -> Cache:
        """An empty cache for `batch` sequences that advance together."""
        return Cache(self.config, self, batch, max_rollback)

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


def _without_last(row: Sequence[Segment]) -> list[Segment]:
    """The row's samples without its last token, which has no successor."""
    *head, last = row
    return [*head, Segment(past=0, new=last.new - 1)] if last.new > 1 else list(head)
