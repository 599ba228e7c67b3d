"""Which tokens a constraint allows next, computed by a worker while the model computes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Stuck(Exception):
    """The constraint allows no token any more, or became too complex to go on."""


class Masks:
    """The state of one answer's constraint.

    first [V] bool: what may come at the beginning.  Work is done by `worker`, in the order in which it was
    given: one thread.
    """

    def __init__(self, matcher: LLMatcher, first: Tensor, worker: Executor) -> None:
        self._matcher = matcher
        self._size = len(first)
        self._worker = worker
        self._next: Future[Tensor] = Future()
        self._next.set_result(first)
        self._drafted: tuple[int, ...] = ()
        self._ahead: list[Future[Tensor]] = []

    def accept(self, tokens: Sequence[int]) -> None:
        """The answer goes on with these; the mask after them begins to be computed."""
        self._drafted, self._ahead = (), []
        self._next = self._worker.submit(self._advance, tuple(tokens))

    def draft(self, tokens: Sequence[int]) -> None:
        """The masks after each of these, which may not come to stay, begin to be computed."""
        same = self._drafted[: len(tokens)] == tuple(tokens[: len(self._drafted)])
        known = min(len(self._ahead), len(tokens)) if same else 0
        self._drafted = tuple(tokens)
        self._ahead[known:] = [
            self._worker.submit(self._peek, self._drafted[: i + 1]) for i in range(known, len(tokens))
        ]

    def after(self, drafted: Sequence[int] = ()) -> Tensor:
        """What may come after the answer so far and `drafted`, [V] bool.  Stuck: nothing may."""
        if not drafted:
            return self._next.result()
        if self._drafted[: len(drafted)] != tuple(drafted):
            self.draft(drafted)
        return self._ahead[len(drafted) - 1].result()

    def _advance(self, tokens: Sequence[int]) -> Tensor:
        if not self._matcher.consume_tokens(list(tokens)):
            raise Stuck(self._matcher.get_error())
        return allowed(self._matcher, self._size)

    def _peek(self, tokens: Sequence[int]) -> Tensor:
        taken = self._matcher.try_consume_tokens(list(tokens))
        try:
            if taken < len(tokens):
                raise Stuck("a drafted token is not allowed")
            return allowed(self._matcher, self._size)
        finally:
            self._matcher.rollback(taken)


def allowed(matcher: LLMatcher, size: int) -> Tensor:
    """What may come next, [size] bool.  Stuck: nothing, or the matcher has failed."""
    bits = torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=torch.uint8)
    if matcher.is_error():
        raise Stuck(matcher.get_error())
    mask = torch.zeros(size, dtype=torch.bool)
    known = (bits.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)).bitwise_and_(1).flatten()[:size]
    mask[: len(known)] = known.bool()
    if not bool(mask.any()):
        raise Stuck("no token is allowed")
    return mask
