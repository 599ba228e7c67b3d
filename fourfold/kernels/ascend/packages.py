"""T2: operators of packages that are installed apart from torch_npu, each of which words them in its own way.

custom: hicann/cann-recipes-infer, ops/ascendc; _C_ascend: vllm-ascend; cann_ops_transformer: CANN's own.
Limits are those of the operators' documentation in cann-recipes-infer (August 2026).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fourfold.kernels.ascend.forms import Form
from fourfold.kernels.ascend.public import (
    BF16,
    F32,
    HC_OPTIONS,
    always,
    has_bf16_output,
    has_bf16_streams,
    hc_post_trial,
    hc_pre_trial,
    pair_angles,
    rope_trial,
)

_LISTED = frozenset({"A3", "A5"})
_WIDEST_HEAD = 1024
_STREAMS, _WIDTH, _ITERATIONS = 4, 4096, 20  # those of V4-Flash, and no others


def _rope(space: str) -> Callable[..., Tensor]:
    def rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
        width, turned = x.shape[-1], 2 * cos.shape[-1]
        heads = x.shape[-2] if x.dim() == cos.dim() + 1 else 1
        # The operator turns in place, in float32 where the angles are.
        y = x.reshape(-1, 1, heads, width).clone()
        first, second = (angle.unsqueeze(1) for angle in pair_angles(cos, sin, inverse))
        operator = getattr(torch.ops, space).inplace_partial_rotary_mul.default
        operator(y, first, second, rotary_mode="interleave", partial_slice=[width - turned, width])
        return y.view_as(x)

    return rope


def _rope_limit(x: Tensor, *_: object) -> str | None:
    if x.shape[-1] % 2 or x.shape[-1] > _WIDEST_HEAD:
        return f"heads of {x.shape[-1]}, allowed: even ones up to {_WIDEST_HEAD}"
    return None


def _hc_pre(space: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def hc_pre(
        streams: Tensor, fn: Tensor, scale: Tensor, base: Tensor, *, iters: int, norm_eps: float, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        operator = getattr(torch.ops, space).npu_hc_pre.default
        u, post, comb = operator(
            streams.contiguous(), fn, scale, base,
            hc_mult=streams.shape[-2], hc_sinkhorn_iters=iters, norm_eps=norm_eps, hc_eps=eps,
        )  # fmt: skip
        return u, post, comb

    return hc_pre


def _hc_post(space: str) -> Callable[..., Tensor]:
    def hc_post(output: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        operator = getattr(torch.ops, space).npu_hc_post.default
        y: Tensor = operator(output.contiguous(), streams.contiguous(), post, comb)
        return y

    return hc_post


def _hc_pre_limit(streams: Tensor, *_: object, iters: int, **__: object) -> str | None:
    if iters != _ITERATIONS:
        return f"{iters} Sinkhorn iterations, allowed: {_ITERATIONS}"
    return _hc_post_limit(streams, streams)


def _hc_post_limit(output: Tensor, streams: Tensor, *_: object) -> str | None:
    if streams.shape[-2:] != (_STREAMS, _WIDTH):
        n, width = streams.shape[-2:]
        return f"{n} streams of {width}, allowed: {_STREAMS} of {_WIDTH}"
    return None


def _forms(space: str) -> Iterator[Form]:
    def form(operation: str, operator: str, **rest: Any) -> Form:
        names = (f"{space}::{operator}",)
        return Form(operation=operation, operators=names, tier="T2", generations=_LISTED, **rest)

    yield form(
        "rope", "inplace_partial_rotary_mul", run=_rope(space), note="all calls, float32 inside",
        covers=always, limit=_rope_limit, trial=rope_trial, options={}, bound=F32,
    )  # fmt: skip
    if space == "cann_ops_transformer":
        return
    yield form(
        "hc_pre", "npu_hc_pre", run=_hc_pre(space), note="bf16 streams of V4-Flash",
        covers=has_bf16_streams, limit=_hc_pre_limit, trial=lambda: hc_pre_trial(_WIDTH), options=HC_OPTIONS,
        bound=BF16,
    )  # fmt: skip
    yield form(
        "hc_post", "npu_hc_post", run=_hc_post(space), note="bf16 streams of V4-Flash",
        covers=has_bf16_output, limit=_hc_post_limit, trial=lambda: hc_post_trial(_WIDTH), options={},
        bound=BF16,
    )  # fmt: skip


FORMS = tuple(form for space in ("_C_ascend", "custom", "cann_ops_transformer") for form in _forms(space))
