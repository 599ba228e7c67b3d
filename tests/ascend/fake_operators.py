"""Operators of torch_npu and of operator packages for the Python device: exact schemas, what their
documentation says they compute, and its limits as assertions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.kernels.ascend.schemas import SCHEMAS
from fourfold.kernels.formats import decode_fp4

_INT32, _FLOAT, _BF16 = 3, 6, 15  # a dtype that is given for an int argument arrives as torch's number of it
_FP4, _E8M0 = 296, 293  # torch_npu's own numbers
used: Counter[str] = Counter()
"""How often each fake was called."""


class Installed:
    """Fakes that exist until `remove`; schema: registered instead of the true one; run: instead of _FAKES."""

    def __init__(
        self, names: list[str], schema: dict[str, str] | None = None, **run: Callable[..., Any]
    ) -> None:
        self._libraries: dict[str, torch.library.Library] = {}
        for name in names:
            space, _, operator = name.partition("::")
            if space not in self._libraries:
                self._libraries[space] = torch.library.Library(space, "FRAGMENT")
            library = self._libraries[space]
            library.define((schema or {}).get(name, SCHEMAS[name]))
            library.impl(operator, _counted(name, run.get(operator, _FAKES[operator])), "CPU")

    def remove(self) -> None:
        """As if they had never been."""
        for space, library in self._libraries.items():
            library._destroy()
            vars(torch.ops).pop(space, None)


def _counted(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    def fake(*args: Any, **kwargs: Any) -> Any:
        used[name] += 1
        return run(*args, **kwargs)

    return fake


def npu_rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    assert gamma.dtype in (x.dtype, torch.float32)
    rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)
    return (x.float() * rstd * gamma.float()).to(x.dtype), rstd


def npu_rotary_mul(
    x: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> Tensor:
    assert rotary_mode == "interleave" and x.dim() == 3 and r1.shape == (x.shape[0], 1, x.shape[2])
    return x * r1 + torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2) * r2


def npu_moe_gating_top_k(
    x: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    input_ids: Tensor | None = None,
    tid2eid: Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    out_flag: bool = False,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> tuple[Tensor, Tensor, Tensor]:
    assert norm_type == 2 and renorm == 0
    scores = F.softplus(x).sqrt()
    if tid2eid is None:
        assert bias is not None and bias.dtype == x.dtype
        chosen = (scores + bias).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    else:
        assert input_ids is not None and tid2eid.dtype == torch.int32
        chosen = tid2eid[input_ids].long()
    y = scores.gather(1, chosen)
    return y / (y.sum(-1, keepdim=True) + eps) * routed_scaling_factor, chosen.int(), scores


def npu_dynamic_quant(x: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    assert x.dtype in (torch.float16, torch.bfloat16)
    return _to_int8(x.float())


def npu_quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    pertoken_scale: Tensor | None = None,
    output_dtype: int | None = None,
    group_sizes: list[int] | None = None,
    **_: Any,
) -> Tensor:
    if pertoken_scale is not None:
        return _fp8_product(x1, x2, scale, pertoken_scale, output_dtype, group_sizes)
    assert x1.dtype == x2.dtype == torch.int8 and output_dtype == _INT32
    return (x1.double() @ x2.double()).to(torch.int32)


def _fp8_product(
    x1: Tensor, x2: Tensor, scale: Tensor, rows: Tensor, output_dtype: int | None, groups: list[int] | None
) -> Tensor:
    """Mode G-B: a scale per 128 values of a row of x1, and per 128 x 128 of x2."""
    assert x1.dtype == x2.dtype == torch.float8_e4m3fn and groups == [1, 128, 128]
    (m, k), n = x1.shape, x2.shape[1]
    assert rows.dtype == scale.dtype == torch.float32
    assert rows.shape == (m, -(-k // 128)) and scale.shape == (-(-k // 128), -(-n // 128))
    wide = scale.repeat_interleave(128, 0)[:k].repeat_interleave(128, 1)[:, :n]
    y = (x1.double() * rows.repeat_interleave(128, 1)[:, :k]) @ (x2.double() * wide)
    return y.to({_BF16: torch.bfloat16, _FLOAT: torch.float32}[output_dtype or 0])


def npu_moe_init_routing_v2(
    x: Tensor,
    expert_idx: Tensor,
    *,
    scale: Tensor | None = None,
    active_num: int = -1,
    expert_num: int = -1,
    active_expert_range: list[int] | None = None,
    row_idx_type: int = 0,
    quant_mode: int = -1,
    expert_tokens_num_type: int = 0,
    **_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert expert_idx.dtype == torch.int32 and int(expert_idx.max()) < expert_num and quant_mode == -1
    assert active_num == expert_idx.numel() and expert_tokens_num_type == 1 and row_idx_type == 0
    order = expert_idx.flatten().argsort(stable=True)
    where = torch.empty_like(order).scatter_(0, order, torch.arange(len(order))).int()
    tokens = order // expert_idx.shape[1]
    scales = torch.zeros(0) if scale is None else scale[tokens]
    return x[tokens], where, expert_idx.flatten().bincount(minlength=expert_num), scales


def npu_grouped_matmul(
    x: list[Tensor],
    weight: list[Tensor],
    *,
    group_list: Tensor,
    split_item: int = 0,
    group_type: int | None = None,
    group_list_type: int = 0,
    output_dtype: int | None = None,
    antiquant_scale: list[Tensor] | None = None,
    per_token_scale: list[Tensor] | None = None,
    weight_dtype: int | None = None,
    per_token_scale_dtype: int | None = None,
    **_: Any,
) -> list[Tensor]:
    assert split_item == 3 and group_type == 0 and group_list_type == 1 and len(group_list) > 1
    if antiquant_scale is not None and per_token_scale is not None:
        assert weight_dtype == _FP4 and per_token_scale_dtype == _E8M0 and output_dtype == _BF16
        x, weight = [_mx(x[0], per_token_scale[0])], [_mx_weight(weight[0], antiquant_scale[0])]
        output_dtype = None
    codes = {
        torch.int8: (_INT32, torch.int32),
        torch.bfloat16: (_BF16, torch.bfloat16),
        torch.float32: (None, torch.bfloat16),
    }
    code, dtype = codes[x[0].dtype]
    assert x[0].dtype == weight[0].dtype and code == output_dtype
    parts = x[0].double().split(group_list.tolist())
    result = torch.cat([part @ w.double() for part, w in zip(parts, weight[0], strict=True)])
    return [result.to(dtype)]


def _mx(x: Tensor, scale: Tensor) -> Tensor:
    """FP8 [M, K] and exponents of each 32 values as bytes [M, K/64, 2], as float32."""
    assert x.dtype == torch.float8_e4m3fn and scale.dtype == torch.uint8
    assert scale.shape == (x.shape[0], x.shape[1] // 64, 2)
    return x.float() * torch.exp2(scale.float() - 127).flatten(1).repeat_interleave(32, 1)


def _mx_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """FP4 [g, K/2, N] as bytes, neighbours of K in one, and [g, N, K/64, 2] bytes, as float32 [g, K, N]."""
    assert weight.dtype == scale.dtype == torch.uint8 and weight.stride(1) == 1
    stored = weight.transpose(1, 2).view(torch.int8)
    assert scale.shape == (*stored.shape[:2], stored.shape[2] // 32, 2)
    return decode_fp4(stored, scale.flatten(-2).view(torch.float8_e8m0fnu)).transpose(1, 2)


def npu_dequant_swiglu_quant(
    x: Tensor,
    *,
    weight_scale: Tensor,
    activation_scale: Tensor,
    group_index: Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    swiglu_mode: int = 0,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    assert x.dtype == torch.int32 and activate_left and quant_mode == 1 and swiglu_mode == 2
    assert activation_scale.shape == (x.shape[0], 1)
    groups = torch.tensor([x.shape[0]]) if group_index is None else group_index
    values = x.float() * weight_scale.repeat_interleave(groups, dim=0) * activation_scale
    left, right = values.chunk(2, dim=-1)
    left, right = left.clamp(max=clamp_limit), right.clamp(-clamp_limit, clamp_limit)
    return _to_int8(left * torch.sigmoid(glu_alpha * left) * (right + glu_bias))


def npu_transpose_batchmatmul(
    x: Tensor, weight: Tensor, *, perm_x1: list[int], perm_x2: list[int], perm_y: list[int], **_: Any
) -> Tensor:
    assert (perm_x1, perm_x2, perm_y) == ([1, 0, 2], [0, 1, 2], [1, 0, 2]) and x.dim() == 3
    return torch.bmm(x.transpose(0, 1).float(), weight.float()).transpose(0, 1).to(x.dtype).contiguous()


def npu_mhc_pre(
    x: Tensor,
    phi: Tensor,
    alpha: Tensor,
    bias: Tensor,
    *,
    norm_eps: float = 1e-6,
    hc_eps: float = 1e-6,
    **_: Any,
) -> tuple[Tensor, ...]:
    assert x.dtype == torch.bfloat16
    n = x.shape[-2]
    flat = x.flatten(-2).float()
    mix = flat @ phi.T * torch.rsqrt(flat.square().mean(-1, keepdim=True) + norm_eps)
    pre = torch.sigmoid(mix[..., :n] * alpha[0] + bias[:n]) + hc_eps
    post = 2 * torch.sigmoid(mix[..., n : 2 * n] * alpha[1] + bias[n : 2 * n])
    logits = (mix[..., 2 * n :] * alpha[2] + bias[2 * n :]).unflatten(-1, (n, n))
    u = (pre.unsqueeze(-1) * x.float()).sum(-2).to(x.dtype)
    return u, post, logits, torch.zeros(0), torch.zeros(0), torch.zeros(0)


def npu_mhc_sinkhorn(
    x: Tensor, *, eps: float = 1e-6, num_iters: int = 20, out_flag: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    m = x.softmax(-1) + eps
    m = m / (m.sum(-2, keepdim=True) + eps)
    for _ in range(num_iters - 1):
        m = m / (m.sum(-1, keepdim=True) + eps)
        m = m / (m.sum(-2, keepdim=True) + eps)
    return m, torch.zeros(0), torch.zeros(0)


def npu_mhc_post(x: Tensor, h_res: Tensor, h_out: Tensor, h_post: Tensor) -> Tensor:
    mixed = (h_res.unsqueeze(-1) * x.float().unsqueeze(-2)).sum(-3)
    return (h_post.unsqueeze(-1) * h_out.float().unsqueeze(-2) + mixed).to(x.dtype)


def inplace_partial_rotary_mul(
    x: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "interleave", partial_slice: Any = None
) -> None:
    assert x.dim() == 4 and r1.shape == (x.shape[0], 1, 1, r1.shape[-1])
    part = slice(*partial_slice)
    turned = npu_rotary_mul(x[:, 0, :, part].float(), r1[:, 0], r2[:, 0], rotary_mode)
    x[:, 0, :, part] = turned.to(x.dtype)


def npu_hc_pre(
    x: Tensor,
    hc_fn: Tensor,
    hc_scale: Tensor,
    hc_base: Tensor,
    hc_mult: int = 4,
    hc_sinkhorn_iters: int = 20,
    norm_eps: float = 1e-6,
    hc_eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    assert x.shape[-2:] == (4, 4096) and hc_mult == 4 and hc_sinkhorn_iters == 20
    u, post, logits, *_ = npu_mhc_pre(x, hc_fn, hc_scale, hc_base, norm_eps=norm_eps, hc_eps=hc_eps)
    return u, post, npu_mhc_sinkhorn(logits, eps=hc_eps)[0]


def npu_hc_post(x: Tensor, residual: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    assert residual.shape[-2:] == (4, 4096)
    return npu_mhc_post(residual, comb, x, post)


def npu_sparse_attn_sharedkv_metadata(
    num_heads_q: int,
    num_heads_kv: int,
    head_dim: int,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_ori_kv: Tensor | None = None,
    cu_seqlens_cmp_kv: Tensor | None = None,
    seqused_q: Tensor | None = None,
    seqused_kv: Tensor | None = None,
    batch_size: int = 0,
    max_seqlen_q: int = 0,
    max_seqlen_kv: int = 0,
    *_: Any,
    **__: Any,
) -> Tensor:
    assert num_heads_kv == 1 and head_dim == 512 and max_seqlen_q == 1
    assert seqused_kv is not None and len(seqused_kv) == batch_size
    assert int(seqused_kv.max()) <= max_seqlen_kv
    return torch.full((1024,), num_heads_q, dtype=torch.int32)


def npu_sparse_attn_sharedkv(
    q: Tensor,
    *,
    ori_kv: Tensor,
    ori_block_table: Tensor,
    cu_seqlens_q: Tensor,
    seqused_kv: Tensor,
    sinks: Tensor,
    metadata: Tensor,
    softmax_scale: float,
    cmp_ratio: int,
    cmp_kv: Tensor | None = None,
    cmp_block_table: Tensor | None = None,
    cmp_sparse_indices: Tensor | None = None,
    ori_win_left: int = 127,
    ori_win_right: int = 0,
    layout_q: str = "BSND",
    layout_kv: str = "PA_ND",
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Each query sees a band of its own keys, and entries that are complete before it: all, or the chosen."""
    assert (layout_q, layout_kv, ori_win_right) == ("TND", "PA_ND", 0) and q.dtype == torch.bfloat16
    assert q.shape[1] in (64, 128) and q.shape[2] == 512 and sinks.dtype == torch.float32
    assert metadata.dtype == torch.int32 and metadata.tolist() == [q.shape[1]] * 1024
    if cmp_sparse_indices is not None:
        assert cmp_sparse_indices.shape[1:] in ((1, 512), (1, 1024)) and cmp_ratio == 4
    tables = [ori_block_table, cu_seqlens_q, seqused_kv, cmp_block_table, cmp_sparse_indices]
    assert all(table is None or table.dtype == torch.int32 for table in tables)
    out = torch.empty_like(q)
    for i, length in enumerate(seqused_kv.tolist()):
        first, end = cu_seqlens_q[i : i + 2].tolist()
        for t in range(first, end):
            position = length - end + t
            rows = torch.arange(max(0, position - ori_win_left), position + 1)
            keys = [_paged(ori_kv, ori_block_table[i], rows)]
            if cmp_kv is not None and cmp_block_table is not None:
                rows = torch.arange((position + 1) // cmp_ratio)
                if cmp_sparse_indices is not None:
                    chosen = cmp_sparse_indices[t, 0]
                    chosen = chosen[chosen >= 0].long()
                    assert bool((chosen < len(rows)).all())
                    rows = chosen
                keys.append(_paged(cmp_kv, cmp_block_table[i], rows))
            values = torch.cat(keys).float()
            scores = torch.cat([q[t].float() @ values.T * softmax_scale, sinks[:, None]], dim=1)
            out[t] = (scores.softmax(dim=1)[:, :-1] @ values).to(out.dtype)
    return out, torch.zeros(0)


def _paged(pages: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """pages [P, size, 1, C]; rows of the sequence that `table` lists the pages of."""
    size = pages.shape[1]
    assert size % 16 == 0 and size <= 1024 and pages.shape[2] == 1 and pages.is_contiguous()
    return pages[table[rows // size].long(), rows % size, 0]


def _to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale.where(scale > 0, 1.0)).round().to(torch.int8), scale.squeeze(-1)


_FAKES: dict[str, Callable[..., Any]] = {
    run.__name__: run
    for run in (
        npu_rms_norm,
        npu_rotary_mul,
        npu_moe_gating_top_k,
        npu_dynamic_quant,
        npu_quant_matmul,
        npu_moe_init_routing_v2,
        npu_grouped_matmul,
        npu_dequant_swiglu_quant,
        npu_transpose_batchmatmul,
        npu_mhc_pre,
        npu_mhc_sinkhorn,
        npu_mhc_post,
        inplace_partial_rotary_mul,
        npu_hc_pre,
        npu_hc_post,
        npu_sparse_attn_sharedkv,
        npu_sparse_attn_sharedkv_metadata,
    )
}
PUBLIC = [name for name in SCHEMAS if name.startswith("npu::")]
