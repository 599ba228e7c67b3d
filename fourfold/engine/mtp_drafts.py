"""Drafts by the model's own MTP block, used repeatedly for longer ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fourfold.engine.drafts import MOST
from fourfold.engine.job import Job
from fourfold.engine.limits import Limits
from fourfold.engine.masks import Stuck
from fourfold.errors import RequestError
from fourfold.model.paged_layout import Span
from fourfold.model.transformer import Transformer


@dataclass(frozen=True)
class Writer:
    """A request that goes on after a step.

    before: its tokens that were computed before the step; row: of its first token in the step's streams;
    most: drafted tokens that its answer has room for.
    choose: the token that logits [V] stand for, after tokens drafted before it.
    """

    job: Job
    before: int
    row: int
    most: int
    choose: Callable[[Tensor, tuple[int, ...]], int]


@dataclass(frozen=True)
class _Seen:
    """The block has read `count` tokens of `job`, up to position `end`."""

    job: Job
    end: int
    count: int


class MtpDrafts:
    """The MTP block and the windows that it keeps, one for each slot of running requests.

    It begins anew, with an empty window, where it has not read the token before: after a prefix that was
    found, a state that was brought back, steps without drafts.  No snapshot has to hold its window: a shorter
    one makes worse guesses for some tokens, and no other answer.
    """

    def __init__(self, model: Transformer, limits: Limits) -> None:
        self.model = model
        self.cache = model.new_draft_cache(slots=limits.running, drafts=MOST, call_tokens=limits.step_tokens)
        self._seen: dict[int, _Seen] = {}

    def draft(
        self, writers: Sequence[Writer], lengths: Sequence[int], streams: Tensor
    ) -> list[tuple[int, ...]]:
        """Read the tokens of a step and guess so many of those that follow.

        streams [1, N, M, D]: of the step.  Of a prompt only the last tokens are read, one window of them.
        """
        drafts: list[tuple[int, ...]] = [()] * len(writers)
        spans: list[Span] = []
        rows: list[int] = []
        following: list[int] = []
        last: list[int] = []
        for writer, length in zip(writers, lengths, strict=True):
            job = writer.job
            begin = max(writer.before, len(job.tokens) - self.model.config.sliding_window)
            if begin >= job.computed:
                continue
            spans.append(self._span(job, begin))
            shift = writer.row - writer.before
            rows += range(begin + shift, job.computed + shift)
            following += job.tokens.ids[begin + 1 : job.computed + 1]
            if length:
                last.append(len(rows) - 1)
        if not spans:
            return drafts
        out = self._guess(streams[:, self._index(rows)], following, spans)
        asked = [i for i, length in enumerate(lengths) if length]
        out = out[:, self._index(last)]
        while asked:
            logits = self.model.guess_logits(out)[0].cpu()
            going = []
            for row, i in enumerate(asked):
                try:
                    drafts[i] += (writers[i].choose(logits[row], drafts[i]),)
                except (RequestError, Stuck):
                    continue  # if it is true of the model's own logits, too, it will be said of those
                if len(drafts[i]) < lengths[i]:
                    going.append((row, i))
            if not going:
                break
            asked = [i for _, i in going]
            spans = [self._further(writers[i].job, len(drafts[i])) for i in asked]
            out = self._guess(
                out[:, self._index([row for row, _ in going])], [drafts[i][-1] for i in asked], spans
            )
        return drafts

    def _span(self, job: Job, begin: int) -> Span:
        """The job's tokens from `begin` on, after those that the block has read."""
        seen = self._seen.get(job.slot)
        count = seen.count if seen is not None and seen.job is job and seen.end == begin else 0
        new = job.computed - begin
        self._seen[job.slot] = _Seen(job, job.computed, count + new)
        return Span(job.slot, count, new)

    def _further(self, job: Job, drafted: int) -> Span:
        """The place of the last of `drafted` tokens.  The next step's own tokens replace them."""
        return Span(job.slot, self._seen[job.slot].count + drafted - 1, 1)

    def _guess(self, streams: Tensor, following: Sequence[int], spans: Sequence[Span]) -> Tensor:
        out = self.model.guess(streams, self._index(following), spans, self.cache)
        self.cache.commit()
        return out

    def _index(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.model.device)
