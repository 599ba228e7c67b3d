"""Our own engine, as the worker drives it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fourfold
from fourfold.kernels import cpu
from fourfold.kernels.waiting import wait
from fourfold.model.cache import Cache


@dataclass
class OwnState:
    """A cache, and the length to which it is rolled back."""

    cache: Cache
    length: int = 0


class Own:
    """A checkpoint loaded by `fourfold.load`, which takes `load`."""

    def __init__(self, folder: Path, **load: Any) -> None:
        self._model = fourfold.load(folder, **load)
        self.config_vocab = self._model.config.vocab_size

    def use_threads(self, threads: int) -> None:
        torch.set_num_threads(threads)
        cpu.use_threads(threads)

    def fresh(self, room: int) -> OwnState:
        return OwnState(self._model.new_cache(max_rollback=room))

    def branch(self, state: OwnState) -> OwnState:
        state.cache.rollback(state.cache.length - state.length)
        return state

    def keep(self, state: OwnState) -> OwnState:
        state.length = state.cache.length
        return state

    def feed(self, state: OwnState, ids: Tensor) -> None:
        self._model(ids.to(self._model.device), cache=state.cache, logits="last")

    def wait(self) -> None:
        wait(self._model.device)

    def about(self) -> dict[str, Any]:
        """Statistics of experts that are streamed from disk, where the model keeps any."""
        tiers = self._model.tiers
        return {} if tiers is None else {"tiers": tiers.stats().to_dict()}
