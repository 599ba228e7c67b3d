"""The kernel contract, continued: operations that are several others in a row.

A chip may run them in one call; one without its own form runs their parts (composed.py).  Callers find them
in `fourfold.kernels`.
"""

from __future__ import annotations

from torch import Tensor

from fourfold.kernels.composed import (
    CompressorWeights,
    ExpertWeights,
    InputArguments,
    MoeArguments,
    SeenArguments,
    Stored,
    StreamEntry,
)
from fourfold.kernels.formats import Rounding
from fourfold.kernels.registry import impl as _impl


def attention_inputs(
    streams: Tensor,
    entry: StreamEntry,
    wq_a: Stored,
    q_norm: Tensor,
    wq_b: Stored,
    wkv: Stored,
    kv_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    roundings: tuple[Rounding, ...],
    compressors: tuple[CompressorWeights, ...],
    positions: Tensor,
    to_compressors: Rounding,
    *,
    iters: int,
    norm_eps: float,
    eps: float,
) -> tuple[Tensor, ...]:
    """Everything between the streams and attention: (x, post, comb, qr, q, kv, rows of each compressor).

    x, post, comb = hc_input(streams);  qr = rms_norm(wq_a·x, q_norm);  q = rope(rms_norm(wq_b·qr), head by
    head);  kv = rope(rms_norm(wkv·x, kv_norm));  rows = compressor_inputs(x).  streams [B, T, n, D]; entry,
    iters and both eps: as in `hc_input`; a stored weight is (weight, scale); cos, sin [B, T, R/2]; roundings:
    of the inputs of wq_a, wq_b and wkv; positions [B, T] int64; returns qr [B, T, q_lora_rank],
    q [B, T, H, C], kv [B, T, C] in the dtype of streams, the rest as there.  V4 report 2.2, 2.3.
    """
    return _impl("attention_inputs", streams)(
        streams, entry, wq_a, q_norm, wq_b, wkv, kv_norm, cos, sin, heads, roundings,
        compressors, positions, to_compressors, iters=iters, norm_eps=norm_eps, eps=eps,
    )  # fmt: skip


def attention(
    q: Tensor,
    window: Tensor,
    window_range: Tensor,
    entries: Tensor | None,
    entry_range: Tensor | None,
    entry_index: Tensor | None,
    sink: Tensor,
    scale: float,
    rounding: Rounding,
    cos: Tensor,
    sin: Tensor,
    wo_a: Stored,
    groups: int,
    wo_b: Stored,
    roundings: tuple[Rounding, ...],
) -> Tensor:
    """wo_b · (the groups' wo_a · inverse rope(o)) with o = sparse_attention(q, ...).

    q to rounding: as there; cos, sin [B, T, R/2]; roundings: of the inputs of wo_a and wo_b; returns
    [B, T, D] in the dtype of q.  V4 report 2.3.1.
    """
    return _impl("attention", q)(
        q, window, window_range, entries, entry_range, entry_index, sink, scale, rounding,
        cos, sin, wo_a, groups, wo_b, roundings,
    )  # fmt: skip


def compressor_inputs(x: Tensor, weights: CompressorWeights, positions: Tensor, rounding: Rounding) -> Tensor:
    """[wkv·x, wgate·x + ape[position mod m]], what a compressor remembers of each token.

    x [B, T, D]; weights: (wkv, wgate, ape), ape [m, C] f32; positions [B, T] int64; returns [B, T, 2C] f32.
    V4 report 2.3.1, eq. 9-12.
    """
    return _impl("compressor_inputs", x)(x, weights, positions, rounding)


def compressor_entries(
    pending: Tensor, tokens: Tensor, norm: Tensor, cos: Tensor, sin: Tensor, overlapping: bool, eps: float
) -> Tensor:
    """What compressors make of blocks: rope(rms_norm(pool of a block's tokens, norm)).

    pending [B, L, 2C'] f32: rows of `compressor_inputs`; tokens [B, S, m] int64: rows of each block's tokens,
    -1 where there is none; cos, sin [B, S, R/2]; returns [B, S, C] f32.  overlapping: C' = 2C and the tokens
    are those of two blocks; an entry pools the first C channels of the one before and the last C of its own;
    else C' = C.  V4 report 2.3.1, eq. 9-12; 2.3.2, eq. 20-23.
    """
    return _impl("compressor_entries", pending)(pending, tokens, norm, cos, sin, overlapping, eps)


def index_queries(
    x: Tensor,
    qr: Tensor,
    wq_b: Stored,
    weights_proj: Stored,
    heads: int,
    cos: Tensor,
    sin: Tensor,
    scale: float,
    roundings: tuple[Rounding, ...],
) -> tuple[Tensor, Tensor]:
    """The indexer's side of a query: q = hadamard(rope(wq_b·qr)), head by head, and scale · weights_proj·x.

    x [B, T, D]; qr [B, T, q_lora_rank]; cos, sin [B, T, R/2]; roundings: of the inputs of both products;
    returns q [B, T, H, C] in the dtype of qr, weights [B, T, H] f32.  V4 report 2.3.1, eq. 13-15.
    """
    return _impl("index_queries", x)(x, qr, wq_b, weights_proj, heads, cos, sin, scale, roundings)


def hc_input(
    streams: Tensor, entry: StreamEntry, *, iters: int, norm_eps: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A sublayer's normed input: hc_pre, then rms_norm of what it mixed.

    entry: fn, scale and base of `hc_pre`, and the norm's weight [D]; norm_eps serves both norms; the rest,
    and post and comb, as in `hc_pre`.
    """
    return _impl("hc_input", streams)(streams, entry, iters=iters, norm_eps=norm_eps, eps=eps)


def hc_next(
    output: Tensor,
    streams: Tensor,
    post: Tensor,
    comb: Tensor,
    entry: StreamEntry,
    *,
    iters: int,
    norm_eps: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From one sublayer to the next: hc_post, then `hc_input` on the streams that it made.

    Returns (streams, input, post, comb); arguments as in `hc_post` and `hc_input`.
    """
    return _impl("hc_next", streams)(
        output, streams, post, comb, entry, iters=iters, norm_eps=norm_eps, eps=eps
    )


def shared_expert(x: Tensor, weights: ExpertWeights, limit: float, rounding: Rounding) -> Tensor:
    """w2·swiglu(w1·x, w3·x): `experts` with one that every token chose.

    x [N, D]; weights: stored w1, w3 [I, D] and w2 [D, I]; returns [N, D] f32.  V4 report 2.1.
    """
    return _impl("shared_expert", x)(x, weights, limit, rounding)


def moe(
    x: Tensor,
    router: Tensor,
    bias: Tensor | None,
    chosen: Tensor | None,
    k: int,
    scaling: float,
    routed: ExpertWeights,
    shared: ExpertWeights,
    limit: float,
    roundings: tuple[Rounding, ...],
) -> Tensor:
    """A whole mixture of experts: route, the K chosen experts, and the shared one added to their sum.

    x [B, T, D]; router [E, D]; bias [E] f32 for `route_topk`, or chosen [N, K] int64 for `route_hash`, the
    other None; routed: stored w1, w3 [E, I, D] and w2 [E, D, I]; shared: as in `shared_expert`; roundings: of
    the products' inputs of both; returns [B, T, D] in the dtype of x.  V4 report 2.1.
    """
    return _impl("moe", x)(x, router, bias, chosen, k, scaling, routed, shared, limit, roundings)


def hc_moe(
    output: Tensor,
    streams: Tensor,
    post: Tensor,
    comb: Tensor,
    entry: StreamEntry,
    experts: MoeArguments,
    *,
    iters: int,
    norm_eps: float,
    eps: float,
) -> Tensor:
    """The rest of a block from attention's output on: hc_next, moe, hc_post.

    Arguments as in `hc_next`; experts: those of `moe` after x; returns streams.  V4 report 2.2.
    """
    return _impl("hc_moe", streams)(
        output, streams, post, comb, entry, experts, iters=iters, norm_eps=norm_eps, eps=eps
    )


def block(
    streams: Tensor,
    inputs: InputArguments,
    slots: tuple[Tensor, ...],
    seen: SeenArguments,
    entry: StreamEntry,
    experts: MoeArguments,
    *,
    iters: int,
    norm_eps: float,
    eps: float,
) -> Tensor:
    """A whole block, in a call that completes no compressed entry and leaves none of them out.

    attention_inputs; kv and the rows of each compressor into `slots` [B, T, ·], in place and in their dtype;
    attention; hc_moe.  streams [B, T, n, D]; inputs: the arguments of `attention_inputs` after streams; seen:
    those of `attention` after q, its window with the slot of kv; entry, experts: as in `hc_moe`; returns
    streams.  No derivative for what went through the slots.  V4 report 2.1, 2.2, 2.3.
    """
    return _impl("block", streams)(
        streams, inputs, slots, seen, entry, experts, iters=iters, norm_eps=norm_eps, eps=eps
    )
