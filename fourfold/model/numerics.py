"""Which roundings a forward pass makes: none ("exact") or those the published model was trained with
("deployed")."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fourfold import kernels
from fourfold.errors import ConfigError
from fourfold.kernels.formats import FP4_GROUP, is_packed

_ACTIVATION_GROUP = 128
_KV_GROUP = 64


@dataclass(frozen=True)
class Numerics:
    """exact: float32 mathematics of the stored weights.  deployed: bf16 between operations, FP8 inputs of
    packed linears (groups of 128), FP8 non-RoPE dims of the KV cache (groups of 64), FP4 index queries and
    keys. V4 report 3.4; groups as in the published reference.
    """

    name: str
    dtype: torch.dtype
    rounds: bool

    def linear_input(self, x: Tensor, weight: Tensor) -> Tensor:
        """What a linear with this stored weight multiplies."""
        return kernels.round_fp8(x, _ACTIVATION_GROUP) if self.rounds and is_packed(weight) else x

    def kv(self, kv: Tensor, rope_width: int) -> Tensor:
        """A window or compressed entry [..., C] as the cache keeps it; its last rope_width dims stay bf16."""
        kv = kv.to(self.dtype)
        if not self.rounds:
            return kv
        still, turned = kv[..., :-rope_width], kv[..., -rope_width:]
        return torch.cat([kernels.round_fp8(still, _KV_GROUP), turned], dim=-1)

    def index(self, x: Tensor) -> Tensor:
        """An index query or key after the Hadamard transform."""
        x = x.to(self.dtype)
        return kernels.round_fp4(x, FP4_GROUP) if self.rounds else x


_NUMERICS = {
    "exact": Numerics("exact", torch.float32, rounds=False),
    "deployed": Numerics("deployed", torch.bfloat16, rounds=True),
}


def numerics(name: str) -> Numerics:
    """The numerics of this name.  ConfigError if there is none."""
    if name not in _NUMERICS:
        raise ConfigError(f"numerics is {name!r}; allowed: {', '.join(_NUMERICS)}")
    return _NUMERICS[name]
