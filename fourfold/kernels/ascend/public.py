"""T1: operators that torch_npu brings, for all but the products of integer weights (products.py).

Limits are those of the operators' documentation (Ascend/op-plugin, docs/zh/custom_APIs/torch_npu, August
2026).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fourfold.kernels.ascend.aten import fits_bf16
from fourfold.kernels.ascend.decode import decode
from fourfold.kernels.ascend.forms import Form
from fourfold.kernels.formats import Rounding, round_input

F32, BF16 = 2e-5, 2e-2
"""How near a trial must come: sums in another order; a step of bf16 at the largest values."""
ALL, A2_A3, A5 = frozenset({"A2", "A3", "A5"}), frozenset({"A2", "A3"}), frozenset({"A5"})
_HEADS = 1000  # one less are rotated by npu_rotary_mul
_EXPERTS, _CHOICES = 2048, 64  # most that npu_moe_gating_top_k takes
_PRODUCT = 65536  # what a dimension of npu_transpose_batchmatmul must stay below


def always(*_: Any, **__: Any) -> bool:
    """A form for every call."""
    return True


def no_limit(*_: Any, **__: Any) -> None:
    """Nothing in the documentation limits a form's shapes."""
    return


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers for a trial, the same on every machine."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    gamma = x.new_ones(x.shape[-1], dtype=torch.float32) if weight is None else weight.float()
    y: Tensor = torch.ops.npu.npu_rms_norm.default(x, gamma, eps)[0]
    return y


def rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
    width = 2 * cos.shape[-1]
    heads = x if x.dim() == cos.dim() + 1 else x.unsqueeze(-2)
    turned = heads[..., -width:].flatten(0, -3).float()
    y = torch.ops.npu.npu_rotary_mul.default(turned, *pair_angles(cos, sin, inverse), "interleave")
    still = heads[..., :-width]
    return torch.cat([still, y.view(*still.shape[:-1], width).to(x.dtype)], dim=-1).view_as(x)


def pair_angles(cos: Tensor, sin: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """cos, sin [..., R/2] -> [N, 1, R] each, every angle twice."""
    sin = -sin if inverse else sin
    double = (angle.flatten(0, -2).repeat_interleave(2, dim=-1).unsqueeze(1) for angle in (cos, sin))
    first, second = double
    return first, second


def _rope_limit(x: Tensor, cos: Tensor, *_: object) -> str | None:
    heads = x.shape[-2] if x.dim() == cos.dim() + 1 else 1
    return f"{heads} heads, allowed: below {_HEADS}" if heads >= _HEADS else None


def route_topk(
    x: Tensor, weight: Tensor, bias: Tensor, k: int, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _gate(x, weight, k, scaling, bias=bias.float())


def route_hash(x: Tensor, weight: Tensor, chosen: Tensor, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
    # The operator looks a token's experts up by its id; they were looked up already, so the ids are the rows.
    ids = torch.arange(x.shape[0], device=x.device)
    return _gate(x, weight, chosen.shape[1], scaling, input_ids=ids, tid2eid=chosen.to(torch.int32))


def _gate(
    x: Tensor, weight: Tensor, k: int, scaling: float, **choice: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.nn.functional.linear(x.float(), weight.float())
    weights, indices, scores = torch.ops.npu.npu_moe_gating_top_k.default(
        logits,
        k,
        **choice,
        norm_type=2,  # sqrt(softplus)
        out_flag=True,
        routed_scaling_factor=scaling,
    )
    return indices.to(torch.int64), weights, scores


def _topk_limit(x: Tensor, weight: Tensor, bias: Tensor, k: int, scaling: float) -> str | None:
    return _gate_limit(weight.shape[0], k)


def _hash_limit(x: Tensor, weight: Tensor, chosen: Tensor, scaling: float) -> str | None:
    return _gate_limit(weight.shape[0], chosen.shape[1])


def _gate_limit(experts: int, k: int) -> str | None:
    if 2 < experts <= _EXPERTS and k <= _CHOICES:
        return None
    return f"{k} of {experts} experts, allowed: at most {_CHOICES} of 3 to {_EXPERTS}"


def grouped_linear(
    x: Tensor, weight: Tensor, scale: Tensor | None, groups: int, rounding: Rounding = Rounding.NONE
) -> Tensor:
    matrices = decode(weight, scale).to(torch.bfloat16).unflatten(0, (groups, -1)).transpose(1, 2)
    y = torch.ops.npu.npu_transpose_batchmatmul.default(
        round_input(x, rounding).flatten(0, -3),
        matrices,
        perm_x1=[1, 0, 2],
        perm_x2=[0, 1, 2],
        perm_y=[1, 0, 2],
    )
    return y.view(*x.shape[:-1], -1)


def _is_bf16_product(
    x: Tensor, weight: Tensor, scale: Tensor | None, groups: int, rounding: Rounding = Rounding.NONE
) -> bool:
    return x.dtype == torch.bfloat16 and fits_bf16(weight, scale)


def _grouped_limit(x: Tensor, weight: Tensor, scale: Tensor | None, groups: int, *_: object) -> str | None:
    columns, rows = x.shape[-1], weight.shape[0] // groups
    if columns % 16 or rows % 16 or columns * groups >= _PRODUCT or rows >= _PRODUCT:
        return (
            f"{groups} groups of {columns} to {rows}, allowed: multiples of 16, groups · inputs < {_PRODUCT}"
        )
    return None


def hc_pre(
    streams: Tensor, fn: Tensor, scale: Tensor, base: Tensor, *, iters: int, norm_eps: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    u, post, logits, *_ = torch.ops.npu.npu_mhc_pre.default(
        streams, fn, scale, base, norm_eps=norm_eps, hc_eps=eps
    )
    comb = torch.ops.npu.npu_mhc_sinkhorn.default(logits, eps=eps, num_iters=iters)[0]
    return u, post, comb


def hc_post(output: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    y: Tensor = torch.ops.npu.npu_mhc_post.default(streams, comb, output, post)
    return y


def has_bf16_streams(streams: Tensor, *_: object, **__: object) -> bool:
    """hc_pre: of a model whose numerics round to bf16 between operations."""
    return streams.dtype == torch.bfloat16


def has_bf16_output(output: Tensor, *_: object) -> bool:
    """hc_post: the same."""
    return output.dtype == torch.bfloat16


def _pre_limit(streams: Tensor, *_: object, **__: object) -> str | None:
    return _streams_limit(streams)


def _post_limit(output: Tensor, streams: Tensor, *_: object) -> str | None:
    return _streams_limit(streams)


def _streams_limit(streams: Tensor) -> str | None:
    n, width = streams.shape[-2:]
    if n in (4, 6, 8) and width % 16 == 0 and width <= 16384:
        return None
    return f"{n} streams of {width}, allowed: 4, 6 or 8 of a multiple of 16 up to 16384"


def hc_pre_trial(width: int = 64) -> tuple[Tensor, ...]:
    """Arguments of hc_pre but its options."""
    n = 4
    fn = draw((2 + n) * n, n * width) / 8
    return draw(1, 16, n, width, dtype=torch.bfloat16), fn, draw(3), draw((2 + n) * n)


def hc_post_trial(width: int = 64) -> tuple[Tensor, ...]:
    """Arguments of hc_post."""
    comb = draw(1, 16, 4, 4).softmax(-1)
    half = torch.bfloat16
    return draw(1, 16, width, dtype=half), draw(1, 16, 4, width, dtype=half), draw(1, 16, 4), comb


def rope_trial() -> tuple[Any, ...]:
    """Arguments of rope."""
    angles = draw(2, 3, 32) * 100
    return draw(2, 3, 4, 128), angles.cos(), angles.sin(), True


def _route_trial() -> tuple[Any, ...]:
    # Whole numbers: scores are equal where they look so, and ties must go to the lower expert.
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randint(-2, 3, shape, generator=generator).float() for shape in ((9, 16), (32, 16)))
    return x, weight, torch.randint(0, 2, (32,), generator=generator).float(), 6, 1.5


def _hash_trial() -> tuple[Any, ...]:
    chosen = torch.stack([torch.arange(6) * 5 + i for i in range(4)])
    return draw(4, 16), draw(32, 16), chosen, 2.5


def _form(operation: str, operators: tuple[str, ...], generations: frozenset[str], **rest: Any) -> Form:
    names = tuple(f"npu::{name}" for name in operators)
    defaults = {"covers": always, "limit": no_limit, "options": {}, "tier": "T1"}
    return Form(operation=operation, operators=names, generations=generations, **{**defaults, **rest})


HC_OPTIONS = {"iters": 20, "norm_eps": 1e-6, "eps": 1e-6}

FORMS = (
    _form(
        "rms_norm", ("npu_rms_norm",), ALL, run=rms_norm, note="all calls, float32 inside",
        trial=lambda: (draw(2, 3, 192), draw(192), 1e-6), bound=F32,
    ),
    _form(
        "rope", ("npu_rotary_mul",), ALL, run=rope, note="all calls, float32 inside", limit=_rope_limit,
        trial=rope_trial, bound=F32,
    ),
    _form(
        "route_topk", ("npu_moe_gating_top_k",), ALL, run=route_topk, note="all calls, float32",
        limit=_topk_limit, trial=_route_trial, bound=F32,
    ),
    _form(
        "route_hash", ("npu_moe_gating_top_k",), ALL, run=route_hash, note="all calls, float32",
        limit=_hash_limit, trial=_hash_trial, bound=F32,
    ),
    _form(
        "grouped_linear", ("npu_transpose_batchmatmul",), A2_A3, run=grouped_linear,
        note="bf16 inputs, weights that bf16 holds exactly", covers=_is_bf16_product, limit=_grouped_limit,
        trial=lambda: (draw(5, 2, 64, dtype=torch.bfloat16), draw(64, 64, dtype=torch.bfloat16), None, 2),
        bound=BF16,
    ),
    _form(
        "hc_pre", ("npu_mhc_pre", "npu_mhc_sinkhorn"), A5, run=hc_pre, note="bf16 streams",
        covers=has_bf16_streams, limit=_pre_limit, trial=hc_pre_trial, options=HC_OPTIONS, bound=BF16,
    ),
    _form(
        "hc_post", ("npu_mhc_post",), A5, run=hc_post, note="bf16 streams", covers=has_bf16_output,
        limit=_post_limit, trial=hc_post_trial, bound=BF16,
    ),
)  # fmt: skip
