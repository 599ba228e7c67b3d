"""The compiled extension (csrc/module.cpp).  Tensors are contiguous and on the CPU; y is written in place.

ValueError or TypeError: an argument of the wrong shape, dtype or layout; the message names it.
"""

from torch import Tensor

def bind(tensor_type: type[Tensor]) -> bool: ...
def supported_isas() -> list[str]: ...
def isa() -> str: ...
def use_isa(name: str) -> bool: ...
def threads() -> int: ...
def set_threads(threads: int) -> None: ...
def linear(x: Tensor, weight: Tensor, scale: Tensor | None, rounding: int, y: Tensor, /) -> None: ...
def grouped_linear(x: Tensor, weight: Tensor, scale: Tensor | None, rounding: int, y: Tensor, /) -> None: ...
def experts(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    w1: Tensor,
    s1: Tensor | None,
    w3: Tensor,
    s3: Tensor | None,
    w2: Tensor,
    s2: Tensor | None,
    limit: float,
    rounding: int,
    places: Tensor | None,
    y: Tensor,
    /,
) -> None: ...
def stream_weights(
    mix: Tensor,
    scale: Tensor,
    base: Tensor,
    iterations: int,
    eps: float,
    pre: Tensor,
    post: Tensor,
    comb: Tensor,
    /,
) -> bool: ...

class ReadProbe:
    """Memory of `bytes` that is read from one end to the other; first touched by `threads` threads."""

    def __init__(self, bytes: int, threads: int) -> None: ...
    @property
    def bytes(self) -> int: ...
    def seconds(self, threads: int, streams: int) -> float: ...

def multipliers() -> list[tuple[str, str]]: ...
def peak(type: str, unit: str, threads: int, seconds: float) -> float: ...
