"""One conversation's memory: the next prompt pays only for the tokens that the cache does not hold yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from fourfold.engine.config import EngineConfig, EngineOptions
from fourfold.engine.engine import Engine
from fourfold.engine.generate import GenerateOptions, Generation
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from fourfold.model.transformer import Transformer

_SNAPSHOTS = 8  # of the last turns: a conversation goes on where it was, or where its last message began


class Session:
    """An engine for one conversation.  options: as in `EngineConfig`."""

    def __init__(self, m: Transformer, **options: Unpack[EngineOptions]) -> None:
        self._model = m
        self._config = EngineConfig(max_running=1, snapshots=_SNAPSHOTS, **options)
        self._engine = self._begin()

    def generate(self, prompt: Sequence[int], **options: Unpack[GenerateOptions]) -> Generation:
        """As `engine.generate`; what `prompt` shares with earlier ones is not computed again."""
        values: dict[str, Any] = {"max_tokens": 256, **options}
        names = ("max_tokens", "stop", "stop_tokens", "constraint")
        own = {name: values.pop(name) for name in names if name in values}
        request = Request(prompt=prompt, sampling=Sampling(**values), **own)
        return Generation(self._engine, request)

    def reset(self) -> None:
        """Forget everything."""
        self._engine.close()
        self._engine = self._begin()

    def _begin(self) -> Engine:
        return Engine(self._model, self._config)
