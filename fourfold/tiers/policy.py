"""Which expert to evict: the one whose next use is expected last.

A forward visits the layers in order, so an expert of layer l is asked for at the earliest when the forward
gets there: (l - now) mod L layers from now.  It is asked for then with probability q, else one forward later,
and so on: L·(1/q - 1) more layers are expected.  q = 1 - (1 - p)^N for a call of N tokens, with p the share
of recent tokens that chose the expert.  For single tokens this keeps what is used often; a long prefill,
which uses nearly everything once a chunk, evicts what it has just finished with, and not, as LRU would, what
comes next.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MEMORY = 64
"""Tokens over which the share p fades to 1/e."""
_RARE = 1e-4

Floats = npt.NDArray[np.float64]


class NextUse:
    """Shares of `layers` × `per_layer` experts, and the expectation that follows from them."""

    def __init__(self, layers: int, per_layer: int) -> None:
        self._layers = layers
        self._share = np.zeros((layers, per_layer))

    def used(self, layer: int, counts: npt.NDArray[np.int64], tokens: int) -> None:
        """`tokens` tokens went through a layer; counts [E]: how many of them chose each expert."""
        kept = (1 - 1 / MEMORY) ** tokens
        self._share[layer] *= kept
        self._share[layer] += (1 - kept) * counts / tokens

    def distance(self, experts: npt.NDArray[np.int64], layer: int, tokens: int) -> Floats:
        """Layers until each expert (numbered layer·E + expert) is expected to be asked for again.

        layer: the one that runs; its own experts count as done with for this time.  tokens: of this call.
        """
        per_layer = self._share.shape[1]
        away = (experts // per_layer - layer) % self._layers
        away[away == 0] = self._layers
        chance = 1 - (1 - self._share.reshape(-1)[experts]) ** tokens
        return away + self._layers * (1 / np.maximum(chance, _RARE) - 1)
