"""Which of a step's tokens have which adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fourfold import kernels
from fourfold.engine.job import Share
from fourfold.errors import ConfigError, RequestError
from fourfold.model.adapters import AdaptedOperations, Adapter
from fourfold.model.linear import Kept
from fourfold.model.transformer import Transformer


class Adapters:
    """The adapters of an engine, by name.  ConfigError: a name that is not allowed."""

    def __init__(self, model: Transformer, adapters: Mapping[str, Adapter]) -> None:
        if wrong := [name for name in adapters if not re.fullmatch(r"[\w.-]+", name)]:
            raise ConfigError(
                f"an adapter's name is {wrong[0]!r}; allowed: letters, digits, dots, hyphens and underscores"
            )
        self._model = model
        self._by_name = dict(adapters)
        self._by_digest = {one.digest: one for one in adapters.values()}
        self._matrices = Kept(self._on_model)

    def pinned(self, name: str) -> str:
        """NAME as NAME@DIGEST, which no other adapter has; "" for none.  A log keeps this.

        RequestError: there is none of this name, or it is another by now.
        """
        if not name:
            return ""
        plain, _, digest = name.partition("@")
        found = self._by_name.get(plain)
        if found is None or digest not in ("", found.digest):
            allowed = ", ".join(map(repr, self._by_name)) or "none, for this engine has none"
            raise RequestError(f"adapter is {name!r}; allowed: {allowed}")
        return f"{plain}@{found.digest}"

    def operations(self, shares: Sequence[Share]) -> Any:
        """What runs the blocks' operations of a step: the contract, if no token has an adapter."""
        rows: dict[str, list[int]] = {}
        start = 0
        for share in shares:
            if share.job.adapter:
                rows.setdefault(share.job.adapter, []).extend(range(start, start + share.length))
            start += share.length
        if not rows:
            return kernels
        device, matrices = self._model.device, self._matrices()
        if len(next(iter(rows.values()))) == start:
            return AdaptedOperations([(None, matrices[digest]) for digest in rows])
        return AdaptedOperations(
            [(torch.tensor(places, device=device), matrices[digest]) for digest, places in rows.items()]
        )

    def _on_model(self) -> dict[str, Mapping[int, Any]]:
        return {digest: one.on(self._model) for digest, one in self._by_digest.items()}


def digest_of(pinned: str) -> str:
    """Of what `Adapters.pinned` gave."""
    return pinned.partition("@")[2]
