"""One conversation's memory: the next prompt pays only for the tokens that the cache does not hold yet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Unpack

from fourfold.engine.generate import GenerateOptions, Generation, generate
from fourfold.model.cache import Cache
from fourfold.model.transformer import Transformer


class Session:
    """Continues a model's cache from prompt to prompt, wherever they share their beginning."""

    def __init__(self, m: Transformer) -> None:
        self._model = m
        self._last: Generation | None = None

    def generate(self, prompt: Sequence[int], **options: Unpack[GenerateOptions]) -> Generation:
        """As `engine.generate`, with the cache of the previous answer as far as `prompt` repeats it."""
        cache = self._reusable(prompt)
        self._last = generate(self._model, prompt, cache=cache, **options)
        return self._last

    def reset(self) -> None:
        """Forget everything."""
        self._last = None

    def _reusable(self, prompt: Sequence[int]) -> Cache | None:
        """The previous cache, cut back to what it shares with `prompt`; None when that cannot be done."""
        if self._last is None:
            return None
        cache = self._last.cache
        held = (self._last.prompt_ids + self._last.ids)[: cache.length]
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(held, prompt, strict=False)))
        shared = min(shared, len(prompt) - 1)  # the last token must run: its logits begin the answer
        surplus = cache.length - shared
        if shared <= 0 or surplus > cache.max_rollback():
            return None
        cache.rollback(surplus)
        return cache
