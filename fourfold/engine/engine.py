"""Many requests on one model: they join and leave at any step, and no beginning is computed twice."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fourfold.engine.adapters import Adapters, digest_of
from fourfold.engine.answer import Answer, Choice, Chunk
from fourfold.engine.chooser import Chooser
from fourfold.engine.config import EngineConfig, draft_shape, free_memory
from fourfold.engine.grammar import Grammars
from fourfold.engine.job import Job, Phase, Resume, Share
from fourfold.engine.limits import Counters
from fourfold.engine.log import Interrupted
from fourfold.engine.mtp_drafts import Writer
from fourfold.engine.radix import TokenIds
from fourfold.engine.request import Request, boundaries, check_ids, prompt_ids
from fourfold.engine.runner import Runner
from fourfold.engine.scheduler import Scheduler
from fourfold.engine.speculative import Speculator
from fourfold.engine.trace_file import now
from fourfold.engine.work import Work
from fourfold.errors import RequestError
from fourfold.loading import load_adapters
from fourfold.model.experts import TierStats
from fourfold.model.transformer import Transformer
from fourfold.tokenizer import Tokenizer

_NO_LOG = "this engine has no cache_dir, which it needs to know of interrupted requests"
_AHEAD = 1
"""Steps that begin before anybody waits for them: meanwhile, who asked makes something of the last chunk."""
_PATIENCE = 0.05
"""Seconds until a step that has nothing to compute, because all wait for the disk, ends."""


@dataclass(frozen=True)
class EngineStats:
    """running, waiting: requests; blocks_free, blocks_cached (evictable), blocks; snapshots: held.

    cache_bytes: of the paged cache; saved_bytes: of preempted requests.  counters: since the beginning.
    tiers: of experts that RAM does not hold all of.
    """

    running: int
    waiting: int
    blocks: int
    blocks_free: int
    blocks_cached: int
    snapshots: int
    cache_bytes: int
    saved_bytes: int
    counters: Counters
    tiers: TierStats | None = None


class Engine:
    """Serves requests of one model from one cache; any number of threads and tasks may ask at once.

    A step runs when somebody waits for a chunk, and one more after it, on a thread of the engine's own, so
    that no interruption can tear it.  tokenizer: the model's own unless given.  adapters: folders of low-rank
    adapters of this model, by the names that requests call them.  RequestError: there is no tokenizer.
    ConfigError: the memory is too small.  CheckpointError: an adapter is malformed, or another model's.
    """

    def __init__(
        self,
        model: Transformer,
        config: EngineConfig | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        adapters: Mapping[str, str | Path] | None = None,
    ) -> None:
        found = tokenizer or model.tokenizer
        if found is None:
            raise RequestError("this model has no tokenizer; pass tokenizer=fourfold.tokenizer(folder)")
        self.model = model
        self.tokenizer: Tokenizer = found
        self.config = config or EngineConfig()
        self._adapters = Adapters(model, load_adapters(model, adapters or {}))
        limits = self.config.limits(
            model.cache_shape,
            model.config,
            free_memory(model.device),
            drafting=draft_shape(model, self.config.draft),
        )
        disk = self.config.disk_cache(model)
        self._scheduler = Scheduler(limits, None if disk is None else disk.longest)
        self._runner = Runner(model, limits, disk, self._adapters)
        self._speculator: Speculator | None = None
        if self.config.draft != "none":
            self._speculator = Speculator(model, limits, mtp=self.config.draft == "mtp")
        self._log = None if disk is None else disk.log
        self._timeline = self.config.timeline()
        self._work_of: dict[Job, Work] = {}
        self._special = frozenset(found.special_ids.values())
        self._unusable = torch.tensor(found.unused_ids(model.config.vocab_size), dtype=torch.int64)
        self._grammars = Grammars(found, model.config.vocab_size, model.config.eos_token_id)
        self._orders: deque[partial[None]] = deque()
        """What other threads ask for; done between steps."""
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fourfold-engine")
        self._step_done: Future[None] | None = None
        self._ahead = 0

    def submit(self, request: Request, *, said: Sequence[Sequence[int]] = ()) -> Answer:
        """Take a request; `stream` and `generate` do this and wait for its chunks.

        said: tokens of each choice that an engine which is gone has given; the chunks begin with theirs.
        RequestError, at once: it is malformed, can never fit, or its constraint cannot be compiled (the first
        constraint of an engine takes a moment, and every new one: ask from a thread where nothing may wait).
        """
        answer, works = self._prepare(request, said)
        if self._log is not None:
            self._log.begin(answer)
        self._order(works)
        return answer

    @property
    def interrupted(self) -> dict[str, Interrupted]:
        """Requests by id that engines on this cache_dir had begun when they were killed, up to a day ago."""
        return {} if self._log is None else self._log.interrupted

    def resume(self, request_id: str) -> Answer:
        """Go on with an interrupted request: its chunks begin with what was generated before.

        RequestError: there is no such one, or this engine's memory does not hold it.
        """
        if self._log is None:
            raise RequestError(_NO_LOG)
        lost = self._log.found(request_id)
        # Log probabilities are not logged: with them all is computed again, and they follow like the tokens.
        scored = lost.request.logprobs is not None or lost.request.prompt_logprobs is not None
        answer, works = self._prepare(lost.request, () if scored else lost.ids)
        self._log.resume(request_id)
        self._order(works)
        return answer

    def forget(self, request_id: str) -> None:
        """An interrupted request is not wanted any more.  RequestError: there is no such one."""
        if self._log is None:
            raise RequestError(_NO_LOG)
        self._log.resume(request_id)
        self._log.end(request_id)

    def stream(self, request: Request) -> Generator[Chunk]:
        """The chunks of an answer, as they come.  Closing the iterator cancels the request.

        RequestError, at once: as `submit`.  While it runs: what ended this request, and only this one.
        """
        return self.chunks(self.submit(request))

    def generate(self, request: Request) -> AsyncGenerator[Chunk]:
        """The same for `async for`."""
        return self.async_chunks(self.submit(request))

    def chunks(self, answer: Answer) -> Generator[Chunk]:
        """The chunks of a request that was submitted."""
        try:
            while True:
                ended = answer.ended  # asked first: the last chunk comes before the end
                if (chunk := answer.take()) is not None:
                    yield chunk
                elif ended:
                    break
                else:
                    step = self._next_step()
                    if not answer.waiting:
                        step.result()
            if answer.error is not None:
                raise answer.error
        finally:
            self.cancel(answer, wait=True)

    async def async_chunks(self, answer: Answer) -> AsyncGenerator[Chunk]:
        """The same for `async for`."""
        try:
            while True:
                ended = answer.ended
                if (chunk := answer.take()) is not None:
                    yield chunk
                elif ended:
                    break
                else:
                    step = self._next_step()
                    if not answer.waiting:
                        # Shielded: others wait for the same step.
                        await asyncio.shield(asyncio.wrap_future(step))
            if answer.error is not None:
                raise answer.error
        finally:
            self.cancel(answer)

    def cancel(self, answer: Answer, *, wait: bool = False) -> None:
        """Give a request up: within a step everything it holds is free.  wait: until that is so.

        Nothing happens where it has ended, but that it is not logged any more.
        """
        if self._log is not None:
            self._log.end(answer.request.id)
        if answer.ended:
            return
        self._orders.append(partial(self._cancel, answer))
        try:
            done = self._thread.submit(self._obey)
        except RuntimeError:
            return  # the engine is closed, or the interpreter ends
        if wait:
            done.result()

    def drop(self, answer: Answer, index: int) -> None:
        """One of several choices is not wanted any more: within a step what it holds is free."""
        self._orders.append(partial(self._drop, answer, index))

    def close(self) -> None:
        """Stop the engine's thread.  Who still waits for a chunk gets a RequestError."""
        self._thread.shutdown()
        self._grammars.close()
        if self._runner.disk is not None:
            self._runner.disk.close()
        if self._timeline is not None:
            self._timeline.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self) -> None:
        """Compute one step, for who takes the chunks of all answers himself.  Returns when it is done."""
        self._next_step().result()

    def stats(self) -> EngineStats:
        """What it holds now and has done so far."""
        scheduler = self._scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            blocks=scheduler.pool.count,
            blocks_free=scheduler.pool.free,
            blocks_cached=scheduler.pool.evictable,
            snapshots=len(scheduler.tree),
            cache_bytes=self._runner.cache.bytes,
            saved_bytes=scheduler.saved_bytes,
            counters=replace(scheduler.counters),
            tiers=None if self.model.tiers is None else self.model.tiers.stats(),
        )

    def _prepare(self, request: Request, said: Sequence[Sequence[int]] = ()) -> tuple[Answer, list[Work]]:
        """An answer with these tokens, and what computes each of its choices.  RequestError: as `submit`."""
        config = self.model.config
        request = replace(request, adapter=self._adapters.pinned(request.adapter))
        ids = prompt_ids(request.prompt, self.tokenizer, config)
        check_ids(request, config)
        limit = self._limit(len(ids), request.max_tokens)
        answer = Answer(ids, request, limit, self.tokenizer, config.eos_token_id)
        works = [self._work(answer, choice) for choice in answer.choices]
        for work, known in zip(works, said, strict=False):
            work.replay(known)
        return answer, works

    def _order(self, works: Sequence[Work]) -> None:
        """Have those begin that are not at their end."""
        self._orders.append(partial(self._begin, [work for work in works if not work.choice.ended]))

    def _work(self, answer: Answer, choice: Choice) -> Work:
        """What computes one choice."""
        ids, request = answer.prompt_ids, answer.request
        adapter = digest_of(request.adapter)
        # What an adapter has computed is of no use to others, in memory or on disk.
        scope = f"{request.scope}\n{adapter}" if adapter else request.scope
        job = Job(
            TokenIds(ids, self._scheduler.limits.block_tokens, scope),
            priority=request.priority,
            boundaries=boundaries(ids, self._special),
            scored_tokens=len(ids) if request.prompt_logprobs is not None and choice.index == 0 else 0,
            watched=request.inspect,
            adapter=adapter,
        )
        chooser = Chooser(
            choice.sampling,
            ids,
            self.model.config.vocab_size,
            self._unusable,
            ends=choice.ends,
            min_tokens=request.min_tokens,
            masks=None if request.constraint is None else self._grammars.start(request.constraint),
        )
        return Work(job, answer, choice, chooser)

    def _limit(self, prompt: int, wanted: int | None) -> int:
        """The longest answer.  The model's positions shorten it; what the cache never holds is refused."""
        # The last token of an answer is sampled and not computed.
        positions = self.model.config.max_position_embeddings - prompt + 1
        held = self._scheduler.most_tokens - prompt + 1
        limit = min(positions, held if wanted is None else wanted)
        if limit > held or held < 1:
            raise RequestError(
                f"the prompt has {prompt:,} tokens and max_tokens is {wanted}; allowed: "
                f"{self._scheduler.most_tokens:,} together, which is what the cache holds; lower max_tokens, "
                "or give the engine more memory"
            )
        return limit

    def _next_step(self) -> Future[None]:
        """The step that runs or, where none does, the next one: all who wait share it.

        What the step before it gave can be taken by now.
        """
        with self._lock:
            self._ahead = _AHEAD
            if self._step_done is None or self._step_done.done():
                try:
                    self._step_done = self._thread.submit(self._run_step)
                except RuntimeError:
                    raise RequestError("the engine is closed; make another one") from None
            return self._step_done

    # From here on: on the engine's thread.

    def _run_step(self) -> None:
        self._step()
        with self._lock:
            if not self._ahead or not self._work_of:
                return
            self._ahead -= 1
            # Who waited for this step may wait for the next one before this one counts as done.
            with suppress(RuntimeError):  # the engine is closed
                self._step_done = self._thread.submit(self._run_step)

    def _obey(self) -> None:
        while self._orders:
            self._orders.popleft()()

    def _begin(self, works: Sequence[Work]) -> None:
        for work in works:
            self._work_of[work.job] = work
            self._scheduler.submit(work.job)
            if self._timeline is not None:
                self._timeline.came(work)

    def _drop(self, answer: Answer, index: int) -> None:
        for job, work in list(self._work_of.items()):
            if work.answer is answer and work.choice.index == index:
                self._scheduler.end(job, keep=False)
                self._leave(job)
                work.choice.ended = True
        self._act()

    def _cancel(self, answer: Answer) -> None:
        self._end(answer)
        self._act()  # what was put aside for it goes now

    def _end(self, answer: Answer, error: Exception | None = None) -> None:
        """Give an answer up, for this reason or none."""
        for job in [job for job, work in self._work_of.items() if work.answer is answer]:
            self._scheduler.end(job, keep=False)
            self._leave(job, error)
        answer.give_up(error)

    def _leave(self, job: Job, error: Exception | None = None) -> None:
        """Nothing is computed for it any more."""
        work = self._work_of.pop(job)
        if self._timeline is not None:
            self._timeline.ended(work, error)

    def _step(self) -> None:
        self._obey()
        try:
            self._welcome(0.0)
            shares = self._scheduler.plan()
            if self._timeline is not None:
                self._timeline.planned()
            self._act()
            if shares := [share for share in shares if share.job.phase is Phase.RUNNING]:
                self._run(shares)
            else:
                self._welcome(_PATIENCE)
        except Exception as error:
            # No single request's fault, and the books may be wrong: all are given up, and new books begun.
            for job, work in list(self._work_of.items()):
                work.answer.give_up(error)
                self._leave(job, error)
            self._scheduler = Scheduler(self._scheduler.limits, self._scheduler.stored)
            self._runner.forget()

    def _welcome(self, seconds: float) -> None:
        """What has come from disk; where nothing can be computed, wait for it so long."""
        for job, whole in self._runner.arrived(seconds):
            self._scheduler.loaded(job, job.computed if whole else 0)

    def _act(self) -> None:
        while self._scheduler.actions:
            action = self._scheduler.actions.popleft()
            try:
                self._runner.act(action)
                if isinstance(action, Resume):
                    for kept in self._scheduler.resumed(action.job):
                        self._runner.keep(action.slot, kept)
            except Exception as error:
                self._fail(action.job, error)

    def _run(self, shares: Sequence[Share]) -> None:
        """Compute; where that fails, each request alone, so that it fails for those who cause it."""
        start, traced = time.perf_counter(), now()
        for share in shares:
            if share.drafts:
                self._work_of[share.job].chooser.draft(share.drafts)
        try:
            logits = self._runner.compute(shares, self._score)
        except Exception as error:
            if len(shares) == 1 and not shares[0].drafts:
                self._fail(shares[0].job, error)
            else:
                for share in shares:
                    if share.job in self._work_of:
                        # Without its draft: a guess is nobody's fault.
                        self._run([replace(share, drafts=())])
            return
        for job, layers in self._runner.choices.items():
            self._work_of[job].answer.layers = layers
        begun = {share.job for share in shares if self._work_of[share.job].choice.ids}
        accepted, failed = self._say(shares, logits)
        self._runner.commit(shares, self._scheduler.advance(shares, accepted), accepted)
        seconds = time.perf_counter() - start
        if self._timeline is not None:
            self._timeline.step(traced, shares, begun, accepted)
        answers = [self._work_of[share.job].answer for share in shares]
        for share in shares:
            work = self._work_of[share.job]
            if work.choice.index == 0:
                work.answer.cached_tokens = min(share.job.cached or 0, len(work.answer.prompt_ids))
            if share.job not in begun:
                work.answer.timing.add(share.new, seconds, prompt=True)
            else:
                given = 1 + accepted[share.job] if share.job in accepted else 0
                work.answer.timing.add(given, seconds, prompt=False)
        if self._log is not None:
            self._log.progress(answers)
        for job, reason in failed.items():
            self._fail(job, reason)
        for job in [share.job for share in shares if share.job in self._work_of]:
            if self._work_of[job].choice.ended:
                self._finish(job)
        if self._speculator is not None:
            self._speculator.learn(shares, accepted, seconds)
            self._speculator.draft(self._writers(shares, accepted), self._runner.streams)

    def _say(
        self, shares: Sequence[Share], logits: Mapping[Job, Tensor]
    ) -> tuple[dict[Job, int], dict[Job, Exception]]:
        """The next tokens of those whose logits are known: how many of each were drafted, or why there are
        none."""
        accepted: dict[Job, int] = {}
        failed: dict[Job, Exception] = {}
        for share in shares:
            job = share.job
            if job in logits:
                try:
                    said, accepted[job] = self._work_of[job].say(logits[job], len(job.tokens), share.drafts)
                    job.tokens.ids += said
                except Exception as error:
                    failed[job] = error
        return accepted, failed

    def _score(self, job: Job, position: int, logits: Tensor) -> None:
        self._work_of[job].score(position, logits)

    def _finish(self, job: Job) -> None:
        slot = job.slot
        for kept in self._scheduler.end(job, keep=not job.watched):
            self._runner.keep(slot, kept)
        self._leave(job)

    def _writers(self, shares: Sequence[Share], accepted: Mapping[Job, int]) -> list[Writer]:
        """Those of a step who go on."""
        writers, row = [], 0
        for share in shares:
            job = share.job
            if (work := self._work_of.get(job)) is not None:
                before = job.computed - share.new - accepted.get(job, 0)
                most = work.choice.limit - len(work.choice.ids) - 1
                writers.append(Writer(job, before, row, most, partial(work.guess, position=len(job.tokens))))
            row += share.length
        return writers

    def _fail(self, job: Job, error: Exception) -> None:
        """Give up the answer that this job is for, if nobody has."""
        if (work := self._work_of.get(job)) is not None:
            self._end(work.answer, error)
