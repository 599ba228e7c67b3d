"""What the scheduler decides, done with tensors: the model's steps, and copies of states and blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import torch
from torch import Tensor

from fourfold import kernels
from fourfold.engine.adapters import Adapters
from fourfold.engine.disk import DiskCache
from fourfold.engine.inspection import LayerChoice, layer_choices
from fourfold.engine.job import Action, Discard, Job, Keep, Load, Restart, Resume, Save, Share
from fourfold.engine.limits import Limits
from fourfold.engine.recorded import RecordedSteps
from fourfold.model.batch import Choices
from fourfold.model.paged import Saved
from fourfold.model.paged_layout import Span
from fourfold.model.transformer import Transformer

_SCORED = 64
"""Rows of the prompt's logits that are held at once: 33 MB of V4's."""


class Runner:
    """A model and its paged cache.  The scheduler's slots come first in it, then those of snapshots.

    disk: where snapshots are kept, too, and states come from that the scheduler has loaded.
    """

    def __init__(
        self,
        model: Transformer,
        limits: Limits,
        disk: DiskCache | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self.model = model
        self.disk = disk
        self._adapters = adapters or Adapters(model, {})
        self.cache = model.new_paged_cache(
            slots=limits.running + limits.snapshots, blocks=limits.blocks, call_tokens=limits.step_tokens
        )
        self._decode = RecordedSteps(model, self.cache, limits.running)
        self.streams = torch.empty(0)
        """After the last block, of the tokens of the last `compute`, [1, N, M, D]."""
        self.choices: dict[Job, tuple[LayerChoice, ...]] = {}
        """Of the last `compute`, at the last known token of jobs that are watched."""
        self._snapshots = limits.running
        self._block_tokens = limits.block_tokens
        self._saved: dict[Job, Saved] = {}
        self._loading: dict[Job, Future[Saved | None]] = {}

    def act(self, action: Action) -> None:
        """Copy what one of the scheduler's actions says."""
        match action:
            case Restart(job=job):
                self.cache.copy_slot(self._snapshots + action.snapshot_slot, action.slot)
                if action.blocks is not None:
                    self.cache.copy_block(*action.blocks)
                blocks = tuple(job.blocks[: -(-job.computed // self._block_tokens)])
                self._store(Keep(job, job.computed, action.snapshot_slot, blocks))
            case Save():
                self._saved[action.job] = self.cache.save(action.slot, action.blocks)
            case Resume():
                self.cache.restore(self._saved.pop(action.job), action.slot, action.blocks)
            case Discard():
                self._saved.pop(action.job, None)
                self._loading.pop(action.job, None)
            case Load():
                assert self.disk is not None
                self._loading[action.job] = self.disk.load(action.job.tokens, action.position)

    def arrived(self, seconds: float) -> Iterator[tuple[Job, bool]]:
        """Jobs whose beginning was read from disk, and whether all of it was as it should be.

        seconds: how long to wait for one, if any is to come.
        """
        if not self._loading:
            return
        wait(self._loading.values(), seconds, FIRST_COMPLETED)
        for job, future in list(self._loading.items()):
            if future.done():
                del self._loading[job]
                saved = future.result()
                if saved is not None:
                    self._saved[job] = saved
                yield job, saved is not None

    def compute(
        self, shares: Sequence[Share], score: Callable[[Job, int, Tensor], None]
    ) -> dict[Job, Tensor]:
        """Logits [n, V] f32 of the jobs whose last known token is among the shares, after it and after each
        of their drafts.  Nothing counts yet.

        Of those that are `scored`, `score` gets the position of the first of some tokens and the logits
        [n, V] f32 after them, a few at a time.  All logits are on the CPU: what samples from them wants
        float64, which not every chip has.
        """
        self.choices = {}
        spans, wanted = [], []
        known: list[int] = []
        places: list[int] = []
        scored: list[tuple[Share, int]] = []
        watched: dict[Job, int] = {}
        for share in shares:
            job = share.job
            self.cache.assign(job.slot, job.blocks)
            spans.append(Span(job.slot, job.computed, share.length))
            if job.scored:
                scored.append((share, len(known)))
            known += job.tokens.ids[job.computed : job.computed + share.new]
            if share.new == job.pending:
                wanted.append(share)
                if job.watched:
                    watched[job] = len(known) - 1
                places += range(len(known) - 1, len(known) + len(share.drafts))
            known += share.drafts
        ids, operations = torch.tensor(known), self._adapters.operations(shares)
        plain = operations is kernels and len(wanted) == len(known) and not scored and not watched
        found = self._decode.compute(spans, ids) if plain else None
        if found is None:
            self.streams = streams = self._streams(ids, spans, operations, watched)
            for share, start in scored:
                for part in range(0, share.new, _SCORED):
                    rows = streams[:, start + part : start + min(part + _SCORED, share.new)]
                    score(share.job, share.job.computed + part, self.model.logits(rows)[0].cpu())
            rows = streams[:, torch.tensor(places, dtype=torch.int64, device=self.model.device)]
            logits = self.model.logits(rows)[0]
        else:
            self.streams, logits = found
        parts = logits.cpu().split([1 + len(share.drafts) for share in wanted])
        return {share.job: part for share, part in zip(wanted, parts, strict=True)}

    def _streams(
        self, ids: Tensor, spans: Sequence[Span], operations: Any, watched: Mapping[Job, int]
    ) -> Tensor:
        """Of a pass.  What it chose for watched jobs, at these places of ids, goes to `choices`."""
        if not watched:
            return self.model.paged_streams(ids, spans, self.cache, operations)
        choices = Choices(torch.tensor(list(watched.values()), device=self.model.device))
        streams = self.model.paged_streams(ids, spans, self.cache, operations, choices)
        self.choices = {
            job: layer_choices(self.model.config, choices, row, len(job.tokens) - 1)
            for row, job in enumerate(watched)
        }
        return streams

    def commit(self, shares: Sequence[Share], kept: Sequence[Keep], accepted: Mapping[Job, int]) -> None:
        """The tokens of these shares count, and so many of their drafts; states go to their snapshots'
        slots."""
        place = {share.job: i for i, share in enumerate(shares)}
        counted = None
        if any(share.drafts for share in shares):
            counted = [share.new + accepted.get(share.job, 0) for share in shares]
        states = [(place[k.job], k.position, self._snapshots + k.snapshot_slot) for k in kept]
        self.cache.commit(states, counted)
        for each in kept:
            self._store(each)

    def keep(self, slot: int, kept: Keep) -> None:
        """The state in `slot`, as it is, goes to the snapshot's."""
        self.cache.copy_slot(slot, self._snapshots + kept.snapshot_slot)
        self._store(kept)

    def forget(self) -> None:
        """Nothing that was put aside is wanted any more."""
        self._saved.clear()
        self._loading.clear()

    def _store(self, kept: Keep) -> None:
        """On disk, too."""
        if self.disk is not None:
            slot = self._snapshots + kept.snapshot_slot
            self.disk.keep(kept.job.tokens, kept.position, self.cache, slot, kept.blocks)
