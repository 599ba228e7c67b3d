"""The compiled extension (csrc/module.cpp).  Tensors are contiguous and on the CPU; y is written in place.

ValueError or TypeError: an argument of the wrong shape, dtype or layout; the message names it.  What
returns bool returns False, and does nothing, where a tensor is none of those that it covers.
"""

from torch import Tensor

from fourfold.kernels.composed import (
    CompressorWeights,
    IndexArguments,
    InputArguments,
    MoeArguments,
    SeenArguments,
    StreamEntry,
)
from fourfold.kernels.formats import Rounding

def bind(tensor_type: type[Tensor]) -> bool: ...
def supported_isas() -> list[str]: ...
def isa() -> str: ...
def use_isa(name: str) -> bool: ...
def fp4_rounding() -> int: ...
def threads() -> int: ...
def set_threads(threads: int) -> None: ...
def place_helpers(processors: list[list[int]]) -> None: ...
def keep_freed_memory() -> None: ...
def interleave(address: int, size: int, nodes: list[int]) -> bool: ...
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
def attention_inputs(
    streams: Tensor,
    inputs: InputArguments,
    iterations: int,
    norm_eps: float,
    eps: float,
    x: Tensor,
    post: Tensor,
    comb: Tensor,
    qr: Tensor,
    q: Tensor,
    kv: Tensor,
    rows: list[Tensor],
    /,
) -> bool: ...
def attention(q: Tensor, seen: SeenArguments, y: Tensor, /) -> bool: ...
def compressor_inputs(
    x: Tensor, weights: CompressorWeights, positions: Tensor, rounding: Rounding, y: Tensor, /
) -> bool: ...
def compressor_entries(
    pending: Tensor,
    tokens: Tensor,
    norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    overlapping: bool,
    eps: float,
    y: Tensor,
    /,
) -> bool: ...
def index_queries(x: Tensor, qr: Tensor, rest: IndexArguments, q: Tensor, weights: Tensor, /) -> bool: ...
def moe(x: Tensor, experts: MoeArguments, y: Tensor, /) -> bool: ...
def hc_moe(
    output: Tensor,
    streams: Tensor,
    post: Tensor,
    comb: Tensor,
    entry: StreamEntry,
    experts: MoeArguments,
    iterations: int,
    norm_eps: float,
    eps: float,
    y: Tensor,
    /,
) -> bool: ...
def block(
    streams: Tensor,
    inputs: InputArguments,
    slots: tuple[Tensor, ...],
    seen: SeenArguments,
    entry: StreamEntry,
    experts: MoeArguments,
    iterations: int,
    norm_eps: float,
    eps: float,
    y: Tensor,
    /,
) -> bool: ...
def rms_norm(x: Tensor, weight: Tensor | None, eps: float, y: Tensor, /) -> None: ...
def rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool, y: Tensor, /) -> None: ...
def hadamard(x: Tensor, y: Tensor, /) -> None: ...
def round_fp8(x: Tensor, group: int, y: Tensor, /) -> None: ...
def round_fp4(x: Tensor, group: int, y: Tensor, /) -> None: ...
def pack_rows(x: Tensor, last: int, bits: int, packed: Tensor, /) -> None: ...
def unpack_rows(packed: Tensor, rows: Tensor, last: int, bits: int, y: Tensor, /) -> None: ...
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
) -> bool: ...
def hc_post(output: Tensor, streams: Tensor, post: Tensor, comb: Tensor, y: Tensor, /) -> None: ...
def hc_input(
    streams: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    norm: Tensor,
    iterations: int,
    norm_eps: float,
    eps: float,
    input: Tensor,
    post: Tensor,
    comb: Tensor,
    /,
) -> bool: ...
def hc_next(
    output: Tensor,
    streams: Tensor,
    post: Tensor,
    comb: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    norm: Tensor,
    iterations: int,
    norm_eps: float,
    eps: float,
    y: Tensor,
    input: Tensor,
    next_post: Tensor,
    next_comb: Tensor,
    /,
) -> bool: ...
def hc_head(
    streams: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    norm_eps: float,
    eps: float,
    y: Tensor,
    /,
) -> bool: ...
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
def draw(logits: Tensor, temperature: float, key: int, /) -> int: ...
def index_topk(q: Tensor, weights: Tensor, keys: Tensor, visible: Tensor, indices: Tensor, /) -> None: ...

class ReadProbe:
    """Memory of `bytes` that is read from one end to the other; first touched by `threads` threads."""

    def __init__(self, bytes: int, threads: int) -> None: ...
    @property
    def bytes(self) -> int: ...
    def seconds(self, threads: int, streams: int) -> float: ...

def multipliers() -> list[tuple[str, str]]: ...
def peak(type: str, unit: str, threads: int, seconds: float) -> float: ...
