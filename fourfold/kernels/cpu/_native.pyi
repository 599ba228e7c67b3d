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
def linear(x: Tensor, weight: Tensor, scale: Tensor, y: Tensor, /) -> None: ...
def grouped_linear(x: Tensor, weight: Tensor, scale: Tensor, y: Tensor, /) -> None: ...
def experts(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    w1: Tensor,
    s1: Tensor,
    w3: Tensor,
    s3: Tensor,
    w2: Tensor,
    s2: Tensor,
    limit: float,
    round_input: bool,
    y: Tensor,
    /,
) -> None: ...
def rms_norm(x: Tensor, weight: Tensor | None, eps: float, y: Tensor, /) -> None: ...
def rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool, y: Tensor, /) -> None: ...
def swiglu(gate: Tensor, up: Tensor, limit: float, y: Tensor, /) -> None: ...
def hadamard(x: Tensor, y: Tensor, /) -> None: ...
def round_fp8(x: Tensor, group: int, y: Tensor, /) -> None: ...
def round_fp4(x: Tensor, group: int, y: Tensor, /) -> None: ...
def pool(values: Tensor, scores: Tensor, y: Tensor, /) -> None: ...
def route(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    indices: Tensor,
    scaling: float,
    scores: Tensor,
    weights: Tensor,
    /,
) -> None: ...
def hc_pre(
    streams: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    iterations: int,
    norm_eps: float,
    eps: float,
    input: Tensor,
    post: Tensor,
    comb: Tensor,
    /,
) -> None: ...
def hc_post(output: Tensor, streams: Tensor, post: Tensor, comb: Tensor, y: Tensor, /) -> None: ...
def hc_head(
    streams: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    norm_eps: float,
    eps: float,
    y: Tensor,
    /,
) -> None: ...
def sparse_attention(
    q: Tensor,
    window: Tensor,
    window_range: Tensor,
    entries: Tensor | None,
    entry_range: Tensor | None,
    entry_index: Tensor | None,
    sink: Tensor,
    scale: float,
    round: bool,
    y: Tensor,
    /,
) -> None: ...
def index_topk(
    q: Tensor, weights: Tensor, keys: Tensor, visible: Tensor, indices: Tensor, /
) -> None: ...
