"""A request that an engine has: all that has come of it, so that another engine can go on where one ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

from fourfold.engine.answer import Chunk
from fourfold.engine.inspection import LayerChoice
from fourfold.engine.logprobs import TokenLogprob
from fourfold.engine.request import Request
from fourfold.worker.wire import Submit

MOST_TRIES = 3
"""Engines that may end while a request has not got a token: it may be what ends them."""


class Ticket:
    """request: with ids as its prompt, and a seed.  ids: the tokens so far of each choice.

    cached_tokens, prompt_logprobs, layers, error: as in `fourfold.engine.answer.Answer`.
    prefill_seconds: of the steps that computed the prompt.  tries: engines that have ended since its last
    token.
    """

    def __init__(self, number: int, request: Request, prompt_ids: list[int]) -> None:
        self.number = number
        self.request = replace(request, prompt=prompt_ids, sampling=request.sampling.seeded())
        self.prompt_ids = prompt_ids
        self.ids: list[list[int]] = [[] for _ in range(request.n)]
        self.cached_tokens = 0
        self.prefill_seconds = 0.0
        self.prompt_logprobs: list[TokenLogprob | None] = [None]
        self.layers: tuple[LayerChoice, ...] = ()
        self.error: Exception | None = None
        self.tries = 0
        loop = asyncio.get_running_loop()
        self.taken: asyncio.Future[None] = loop.create_future()
        """Done when an engine has taken it, or with the reason why not."""
        self._over: set[int] = set()
        self._ended = False
        self._chunks: list[Chunk] = []
        self._more: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        return self._ended

    def again(self) -> Submit:
        """What a new engine is told, to go on behind the tokens that are known."""
        request = self.request
        if len(self.prompt_logprobs) == len(self.prompt_ids) and request.max_tokens != 0:
            request = replace(request, prompt_logprobs=None)
        else:
            self.prompt_logprobs = [None]
        return Submit(self.number, request.to_json(), [list(ids) for ids in self.ids])

    def began(self, cached: int, seconds: float) -> None:
        """What its prompt has cost; only the first engine's account counts."""
        if not any(self.ids):
            self.cached_tokens, self.prefill_seconds = cached, seconds

    def add(self, chunk: Chunk) -> None:
        """The next chunk; `tell` wakes who waits for it."""
        if chunk.index in self._over:
            return  # a new engine comes to its end again
        if chunk.finish_reason is not None:
            self._over.add(chunk.index)
        self.ids[chunk.index] += chunk.ids
        self.tries = 0
        self._chunks.append(chunk)

    def end(self, error: Exception | None) -> None:
        """No chunk comes any more."""
        if not self.taken.done():
            if error is None:
                self.taken.set_result(None)
            else:
                self.taken.set_exception(error)
                self.taken.exception()  # whoever asked may have gone
        self.error = error
        self._ended = True
        self.tell()

    def tell(self) -> None:
        """Wake who waits."""
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    async def chunks(self) -> AsyncGenerator[list[Chunk]]:
        """All chunks, those together that have come together.  Raises what ended the request."""
        while True:
            if self._chunks:
                found, self._chunks = self._chunks, []
                yield found
            elif self._ended:
                break
            else:
                self._more = asyncio.get_running_loop().create_future()
                await self._more
        if self.error is not None:
            raise self.error
