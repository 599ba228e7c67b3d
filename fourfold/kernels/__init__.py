"""The kernel contract: one typed function per operation, which the tensor's device runs (registry.py).

A chip is a module with functions of the same names; `reference` has all of them in plain torch and is the
truth.  The device of the first argument chooses, in one table lookup; the model never asks.  Shapes use the
letters of docs/notation.md.  Operations without a chip's own kernel run on the reference, and `table()` says
so.  Here is what stands alone; joined.py has what is several of these in a row.
"""

from __future__ import annotations

from torch import Tensor

from fourfold.kernels.formats import Rounding
from fourfold.kernels.joined import attention as attention
from fourfold.kernels.joined import attention_inputs as attention_inputs
from fourfold.kernels.joined import block as block
from fourfold.kernels.joined import compressor_entries as compressor_entries
from fourfold.kernels.joined import compressor_inputs as compressor_inputs
from fourfold.kernels.joined import hc_input as hc_input
from fourfold.kernels.joined import hc_moe as hc_moe
from fourfold.kernels.joined import hc_next as hc_next
from fourfold.kernels.joined import index_queries as index_queries
from fourfold.kernels.joined import moe as moe
from fourfold.kernels.joined import shared_expert as shared_expert
from fourfold.kernels.registry import COMPOSED as COMPOSED
from fourfold.kernels.registry import OPERATIONS as OPERATIONS
from fourfold.kernels.registry import discover as discover
from fourfold.kernels.registry import fp4_input as fp4_input
from fourfold.kernels.registry import impl as _impl
from fourfold.kernels.registry import observed as observed
from fourfold.kernels.registry import recorder as recorder
from fourfold.kernels.registry import register as register
from fourfold.kernels.registry import replaced as replaced
from fourfold.kernels.registry import table as table
from fourfold.kernels.registry import unregister as unregister


def linear(x: Tensor, weight: Tensor, scale: Tensor | None, rounding: Rounding = Rounding.NONE) -> Tensor:
    """y = round(x) · Wᵀ with float32 products and sums, in the dtype of x.

    x [..., I]; weight [O, I] f32, bf16, FP8 (scale [ceil(O/128), ceil(I/128)]) or int8 (scale [O]), FP4
    [O, I/2] (scale [O, I/32]) or int4 [O/2, I] (scale [O]), see formats.py; returns [..., O].
    Rounding.INT8 with int8 or int4 weights: integer products and sums, then the two scales.
    """
    return _impl("linear", x)(x, weight, scale, rounding)


def grouped_linear(
    x: Tensor, weight: Tensor, scale: Tensor | None, groups: int, rounding: Rounding = Rounding.NONE
) -> Tensor:
    """One matrix per group: y[..., g, :] = round(x[..., g, :]) · W_gᵀ.

    x [..., G, I]; weight [G·O, I], stored as in `linear`; returns [..., G, O].  V4 report 2.3.1, the grouped
    output projection.
    """
    return _impl("grouped_linear", x)(x, weight, scale, groups, rounding)


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
    rounding: Rounding = Rounding.NONE,
    places: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Σ_k w2·(weight_k · swiglu(w1·x, w3·x)) over the K experts chosen for each token; sums in float32.

    x [N, D]; indices [N, K] int64; weights [N, K] f32; w1, w3 [S, I, D], w2 [S, D, I] in any stored format;
    returns [N, D] f32.  A token adds its experts in ascending order of their number, whatever the batch.
    `rounding` is that of both products' inputs.  places [E] int64: the row of the stacks that holds each
    expert, -1 for experts outside of them, whose choices are left out; None: row e is expert e.
    out [N, D] f32: the sums are added to it, in place.  V4 report 2.1.
    """
    return _impl("experts", x)(x, indices, weights, w1, s1, w3, s3, w2, s2, limit, rounding, places, out)


def route_topk(
    x: Tensor, weight: Tensor, bias: Tensor, k: int, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose K experts by sqrt(softplus(W·x)) + bias; weigh them by the unbiased scores.

    x [N, D], weight [E, D], bias [E] f32 -> indices [N, K] int64, weights [N, K] f32 that sum to `scaling`,
    scores [N, E] f32.  Equal scores go to the lower expert.  V4 report 2.1.
    """
    return _impl("route_topk", x)(x, weight, bias, k, scaling)


def route_hash(x: Tensor, weight: Tensor, chosen: Tensor, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
    """The experts are given by token id; only their weights come from the scores.

    x [N, D], weight [E, D], chosen [N, K] int64 -> as route_topk.  V4 report 2.1, hash routing.
    """
    return _impl("route_hash", x)(x, weight, chosen, scaling)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight, in float32, cast back to the dtype of x.  x [..., D], weight [D]."""
    return _impl("rms_norm", x)(x, weight, eps)


def rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
    """Rotate the last R dims of x by pairs (2i, 2i+1); inverse turns back.

    x [..., H, C] or [..., C]; cos, sin [..., R/2] f32 over the leading dims without H; same shape and dtype.
    """
    return _impl("rope", x)(x, cos, sin, inverse)


def pool(values: Tensor, scores: Tensor) -> Tensor:
    """Σ_j softmax_j(scores) · values over the tokens of a block, channel by channel; score -inf: absent.

    values, scores [B, S, m, C] f32 -> [B, S, C] f32.  V4 report 2.3.1, eq. 9-12 and 2.3.2, eq. 20-23.
    """
    return _impl("pool", values)(values, scores)


def hadamard(x: Tensor) -> Tensor:
    """x · H · n^-½ with H the n×n Sylvester-Hadamard matrix, n = last dim, a power of two.

    V4 report 2.3.1.
    """
    return _impl("hadamard", x)(x)


def index_topk(q: Tensor, weights: Tensor, keys: Tensor, visible: Tensor, k: int) -> Tensor:
    """The k visible entries with the largest Σ_h weights[h]·relu(q[h]·key), ascending, -1 where fewer exist.

    q [B, T, H, C]; weights [B, T, H] f32; keys [B, S, C]; visible [B, T, 2] int64, the range of entries that
    a query may see; returns [B, T, k] int64.  Equal scores go to the lower entry.  V4 report 2.3.1, eq.
    16-17.
    """
    return _impl("index_topk", q)(q, weights, keys, visible, k)


def sparse_attention(
    q: Tensor,
    window: Tensor,
    window_range: Tensor,
    entries: Tensor | None,
    entry_range: Tensor | None,
    entry_index: Tensor | None,
    sink: Tensor,
    scale: float,
    rounding: Rounding = Rounding.NONE,
) -> Tensor:
    """Softmax attention of all heads over one shared key-value vector, with a sink logit of value zero.

    q [B, T, H, C]; window [B, L, C] and window_range [B, T, 2] int64: rows start..end-1 are seen;
    entries [B, S, C] are seen by entry_range [B, T, 2] or, if given, by entry_index [B, T, K] int64 (-1:
    none); sink [H] f32; returns [B, T, H, C] in the dtype of q, sums in float32.  Rounding.BF16 rounds the
    queries and the softmax's weights before their products.  V4 report 2.3.
    """
    return _impl("sparse_attention", q)(
        q, window, window_range, entries, entry_range, entry_index, sink, scale, rounding
    )


def hc_pre(
    streams: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    *,
    iters: int,
    norm_eps: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix the n residual streams into a sublayer's input, and say how its output goes back.

    streams [B, T, n, D]; fn [(2+n)n, nD], scale [3], base [(2+n)n] f32 -> input [B, T, D] in the dtype of
    streams, post [B, T, n] f32, comb [B, T, n, n] f32 (doubly stochastic).  V4 report 2.2, eq. 1-8.
    """
    return _impl("hc_pre", streams)(streams, fn, scale, base, iters=iters, norm_eps=norm_eps, eps=eps)


def hc_post(output: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """X'[k] = post[k]·output + Σ_j comb[j, k]·X[j].  V4 report 2.2.

    output [B, T, D]; streams [B, T, n, D]; post [B, T, n], comb [B, T, n, n] f32 -> as streams.
    """
    return _impl("hc_post", streams)(output, streams, post, comb)


def hc_head(
    streams: Tensor, fn: Tensor, scale: Tensor, base: Tensor, *, norm_eps: float, eps: float
) -> Tensor:
    """Collapse the streams: Σ_j pre[j]·X[j].  V4 report 2.2.

    streams [B, T, n, D]; fn [n, nD], scale [1], base [n] f32 -> [B, T, D].
    """
    return _impl("hc_head", streams)(streams, fn, scale, base, norm_eps=norm_eps, eps=eps)


def round_fp8(x: Tensor, group: int) -> Tensor:
    """x on the FP8 e4m3 grid, a power-of-two scale per `group` values of the last dim; same shape, dtype."""
    return _impl("round_fp8", x)(x, group)


def round_fp4(x: Tensor, group: int) -> Tensor:
    """x on the FP4 e2m1 grid, a power-of-two scale per `group` values of the last dim; same shape, dtype."""
    return _impl("round_fp4", x)(x, group)


def pack_rows(x: Tensor, last: int, bits: int) -> Tensor:
    """Rows as the published KV cache has them.  x [..., C] -> [..., row_bytes(C, last, bits)] uint8.

    All but the `last` values as round_fp8 in groups of 64, or round_fp4 in groups of 32 (bits 8 or 4), makes
    them: codes, FP4 low nibble first, then e8m0 scales; then the last values in bf16.  What is on the grid
    already comes back from `unpack_rows` with the same bits.
    """
    return _impl("pack_rows", x)(x, last, bits)


def unpack_rows(packed: Tensor, rows: Tensor, width: int, last: int, bits: int) -> Tensor:
    """Some of the rows that `pack_rows` made of C = `width` values.

    packed [L, row_bytes] uint8; rows [n] int64 -> [n, C] bf16.
    """
    return _impl("unpack_rows", packed)(packed, rows, width, last, bits)
