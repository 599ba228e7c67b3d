"""Which roundings a forward pass makes: none ("exact"), those the published model was trained with
("deployed"), or those that matrix units want ("fast")."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from fourfold import kernels
from fourfold.errors import ConfigError
from fourfold.kernels.composed import Stored
from fourfold.kernels.formats import FP4_GROUP, KV_GROUP, Rounding, is_integer, is_packed

Kv = Literal["published", "bf16"]


@dataclass(frozen=True)
class Numerics:
    """exact: float32 mathematics of the stored weights.

    deployed: bf16 between operations, FP8 inputs of packed linears (groups of 128), FP8 non-RoPE dims of the
    KV cache (groups of 64), FP4 index queries and keys.  V4 report 3.4; groups as in the published reference.
    fast: float32 between operations, bf16 inputs of products (for FP4 weights 16 bits in groups of 512 or
    int8 in groups of 32, where the chip is faster with them) and a bf16 KV cache.
    Both round the inputs of int8 and int4 weights to int8, one scale a token, as Ascend's products do.
    """

    name: str
    dtype: torch.dtype
    kv_dtype: torch.dtype | None = None
    """None: as `dtype`."""
    rounding: Rounding = Rounding.NONE
    """Of inputs of products: where `published`, of those whose weights are not packed.  With a rounding,
    inputs of int8 and int4 weights are rounded to int8."""
    published: bool = False
    packed: bool = False
    """What a paged cache holds: rows of FP8 and index keys of FP4 as published, or of kv_dtype.  The values
    are rounded to that in every cache."""

    def input_of(self, weight: Tensor, scale: Tensor | None) -> Rounding:
        """How a linear with this stored weight rounds its input."""
        if self.rounding is Rounding.NONE:
            return Rounding.NONE
        bytewise = weight.dtype is torch.int8 or weight.dtype is torch.uint8
        if bytewise and is_integer(weight, scale):
            return Rounding.INT8
        if self.published:
            return Rounding.FP8 if is_packed(weight) else self.rounding
        return kernels.fp4_input(weight.device.type) if bytewise else self.rounding

    def inputs_of(self, *stored: Stored) -> tuple[Rounding, ...]:
        """The same for several weights with their scales."""
        if self.rounding is Rounding.NONE:
            return (Rounding.NONE,) * len(stored)
        return tuple([self.input_of(weight, scale) for weight, scale in stored])

    @property
    def rounds_kv(self) -> bool:
        """Whether rows of the KV cache and index keys are on the published grid."""
        return self.published or self.packed

    def kv(self, kv: Tensor, rope_width: int) -> Tensor:
        """A window or compressed entry [..., C] as the cache keeps it; its last rope_width dims stay bf16."""
        kv = kv.to(self.kv_dtype or self.dtype)
        if not self.rounds_kv:
            return kv
        still, turned = kv[..., :-rope_width], kv[..., -rope_width:]
        return torch.cat([kernels.round_fp8(still, KV_GROUP), turned], dim=-1)

    def index_query(self, q: Tensor) -> Tensor:
        """An index query after the Hadamard transform."""
        return self._index(q, self.published)

    def index_key(self, k: Tensor) -> Tensor:
        """An index key after the Hadamard transform, as the cache keeps it."""
        return self._index(k, self.rounds_kv)

    def _index(self, x: Tensor, rounded: bool) -> Tensor:
        x = x.to(self.kv_dtype or self.dtype)
        return kernels.round_fp4(x, FP4_GROUP) if rounded else x


_NUMERICS = {
    "exact": Numerics("exact", torch.float32),
    "deployed": Numerics("deployed", torch.bfloat16, rounding=Rounding.BF16, published=True),
    "fast": Numerics("fast", torch.float32, kv_dtype=torch.bfloat16, rounding=Rounding.BF16),
}


KV: tuple[Kv, ...] = get_args(Kv)


def numerics(name: str, kv: Kv | None = None) -> Numerics:
    """The numerics of this name, which keep KV as `kv` says; None: as they do by themselves.

    ConfigError: there are none of this name, no such KV, or exact ones are to round it.
    """
    if name not in _NUMERICS:
        raise ConfigError(f"numerics is {name!r}; allowed: {', '.join(_NUMERICS)}")
    if kv is None:
        return _NUMERICS[name]
    if kv not in KV or name == "exact":
        allowed = "none, for exact numerics keep float32" if name == "exact" else ", ".join(KV)
        raise ConfigError(f"kv is {kv!r} with numerics {name!r}; allowed: {allowed}")
    return replace(_NUMERICS[name], packed=kv == "published")
