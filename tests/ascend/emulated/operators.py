"""Run by test_emulated.py: torch_npu's own operators, from their schema down to the emulated arithmetic, and
the limits of their documentation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torch_npu
from torch import Tensor

from fourfold import kernels
from fourfold.kernels import reference

A5 = "950" in torch.get_device_module("npu").get_device_name(0)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def npu(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape).to(dtype).to("npu")


def near(got: Tensor, expected: Tensor, bound: float = 0.01) -> bool:
    """Within `bound` of the largest expected value."""
    error = (got.cpu().float() - expected.float()).abs().max()
    return got.shape == expected.shape and bool(error <= bound * expected.float().abs().max())


def test_rms_norm():
    x, gamma = npu(5, 64), npu(64)
    y, rstd = torch_npu.npu_rms_norm(x, gamma, 1e-6)
    assert near(y, reference.rms_norm(x.cpu(), gamma.cpu(), 1e-6)) and rstd.shape == (5, 1)


def test_rotary_mul():
    x, angles = torch.randn(5, 4, 64), torch.randn(5, 32)
    cos, sin = (t.repeat_interleave(2, -1)[None, :, None].to("npu") for t in (angles.cos(), angles.sin()))
    y = torch_npu.npu_rotary_mul(x[None].to("npu"), cos, sin, rotary_mode="interleave")
    assert near(y[0], reference.rope(x, angles.cos(), angles.sin(), inverse=False), 1e-5)


def test_moe_gating_top_k():
    x, weight, bias = torch.randn(7, 48), torch.randn(16, 48), torch.randn(16)
    logits = (x @ weight.T).to("npu")
    y, experts, _ = torch_npu.npu_moe_gating_top_k(
        logits, 4, bias=bias.to("npu"), norm_type=2, routed_scaling_factor=1.5
    )
    expected, weights, _ = reference.route_topk(x, weight, bias, 4, 1.5)
    assert torch.equal(experts.cpu().long(), expected) and near(y, weights, 1e-5)
    table = torch.randint(16, (10, 4), dtype=torch.int32)
    ids = torch.randint(10, (7,))
    y, experts, _ = torch_npu.npu_moe_gating_top_k(
        logits, 4, input_ids=ids.to("npu"), tid2eid=table.to("npu"), norm_type=2, routed_scaling_factor=1.5
    )
    _, weights, _ = reference.route_hash(x, weight, table[ids].long(), 1.5)
    assert torch.equal(experts.cpu(), table[ids]) and near(y, weights, 1e-5)


def test_int8_experts():
    """init_routing -> grouped_matmul -> dequant_swiglu_quant -> grouped_matmul -> finalize_routing."""
    tokens, experts, width, inner, k = 10, 4, 128, 64, 2
    x = torch.randn(tokens, width).bfloat16()
    chosen = torch.stack([torch.randperm(experts)[:k] for _ in range(tokens)]).int()
    amounts = torch.rand(tokens, k)
    up, down = torch.randn(experts, width, 2 * inner) / 11, torch.randn(experts, inner, width) / 8
    (up_code, up_scale), (down_code, down_scale) = _by_column(up), _by_column(down)
    rows, places, counts, scale = torch_npu.npu_moe_init_routing_v2(
        x.to("npu"), chosen.to("npu"), active_num=tokens * k, expert_num=experts, expert_tokens_num_type=1,
        expert_tokens_num_flag=True, active_expert_range=[0, experts], quant_mode=1,
    )  # fmt: skip
    how = {"group_list": counts, "split_item": 2, "group_type": 0, "group_list_type": 1}
    sums = torch_npu.npu_grouped_matmul([rows], [up_code.to("npu")], output_dtype=torch.int32, **how)[0]
    hidden, hidden_scale = torch_npu.npu_dequant_swiglu_quant(
        sums, weight_scale=up_scale.to("npu"), activation_scale=scale[:, None], group_index=counts,
        activate_left=True, quant_mode=1, swiglu_mode=2, clamp_limit=10.0, glu_alpha=1.0, glu_bias=0.0,
    )  # fmt: skip
    y = torch_npu.npu_grouped_matmul(
        [hidden], [down_code.to("npu")], scale=[down_scale.bfloat16().to("npu")],
        per_token_scale=[hidden_scale], output_dtype=torch.bfloat16, **how,
    )[0]  # fmt: skip
    got = torch_npu.npu_moe_finalize_routing(
        y, None, None, None, amounts.bfloat16().to("npu"), places, None, drop_pad_mode=2
    )
    gate, linear = torch.einsum("td,tkde->tke", x.float(), up[chosen.long()]).chunk(2, dim=-1)
    each = torch.einsum("tke,tked->tkd", F.silu(gate) * linear, down[chosen.long()])
    assert near(got, (each * amounts[..., None]).sum(1), 0.05)


def _by_column(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[E, K, N] -> int8 codes and one float32 scale a column."""
    scale = weight.abs().amax(1) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def test_forms_of_stored_weights_pass_their_trials():
    table = kernels.table("npu")
    wanted = ["int8 weights and inputs", "int4 weights, int8 inputs", "bf16 weights and inputs"]
    if A5:
        wanted = ["FP4 weights, FP8 inputs of bf16", "one expert with FP8 weights and inputs"]
        assert table["linear"].startswith("T1 npu_quant_matmul (FP8 weights and inputs, by blocks)")
    assert [note for note in wanted if f"({note})" not in table["experts"]] == []


def test_quant_matmul():
    x, weight = npu(6, 64), torch.randn(64, 48)
    code, scale = _by_column(weight[None])
    rows, row_scale = torch_npu.npu_dynamic_quant(x)
    y = torch_npu.npu_quant_matmul(
        rows, code[0].to("npu"), scale[0].to("npu"), pertoken_scale=row_scale, output_dtype=torch.bfloat16
    )
    assert near(y, x.cpu().float() @ weight, 0.03)


def test_transpose_batchmatmul():
    x, weight = npu(7, 3, 32), npu(3, 32, 16)
    y = torch_npu.npu_transpose_batchmatmul(x, weight, perm_x1=(1, 0, 2), perm_y=(1, 0, 2))
    assert near(y, torch.einsum("tgk,gkn->tgn", x.cpu().float(), weight.cpu().float()))


def test_scatter_nd_update():
    x = torch.zeros(10, 4, device="npu")
    rows = torch.tensor([[3], [5]], dtype=torch.int32, device="npu")
    torch_npu.npu_scatter_nd_update_(x, rows, torch.ones(2, 4, device="npu"))
    assert x.sum(1).cpu().tolist() == [0, 0, 0, 4, 0, 4, 0, 0, 0, 0]


def _hyper_connections() -> None:
    streams = torch.randn(3, 4, 64).bfloat16()
    fn, scale, base = torch.randn(24, 256) / 10, torch.rand(3), torch.randn(24)
    u, post, logits, *_ = torch_npu.npu_mhc_pre(*(t.to("npu") for t in (streams, fn, scale, base)))
    comb = torch_npu.npu_mhc_sinkhorn(logits, eps=1e-6, num_iters=20)[0]
    expected = reference.hc_pre(streams, fn, scale, base, iters=20, norm_eps=1e-6, eps=1e-6)
    assert all(near(got, want, 1e-5) for got, want in zip((u, post, comb), expected, strict=True))
    out = torch.randn(3, 64).bfloat16()
    y = torch_npu.npu_mhc_post(streams.to("npu"), comb, out.to("npu"), post)
    assert near(y, reference.hc_post(out, streams, *expected[1:]))


def _mx_quant() -> None:
    x = torch.randn(5, 64).bfloat16()
    code, scale = torch_npu.npu_dynamic_mx_quant(x.to("npu"), dst_type=torch.float8_e4m3fn)
    unit = torch.exp2(scale.cpu().view(torch.uint8).flatten(1).float() - 127)
    # A group's largest value is below 512 units, and what exceeds 448, the largest of e4m3, becomes that.
    assert near((code.cpu().float().unflatten(-1, (-1, 32)) * unit[..., None]).flatten(1), x, 1 / 8)


@pytest.mark.parametrize("form", [_hyper_connections, _mx_quant])
def test_forms_of_the_950(form: Callable[[], None]):
    if A5:
        form()
        return
    with pytest.raises(RuntimeError, match=r"Ascend 950|does not exist on Ascend910"):
        form()


def _too_wide() -> None:
    torch_npu.npu_rotary_mul(npu(1, 2, 2, 896), npu(1, 2, 1, 896), npu(1, 2, 1, 896))


def _unaligned() -> None:
    torch_npu.npu_transpose_batchmatmul(npu(2, 3, 24), npu(2, 24, 16))


def _float32() -> None:
    torch_npu.npu_dynamic_quant(npu(2, 32, dtype=torch.float32))


def _many_experts() -> None:
    torch_npu.npu_moe_gating_top_k(npu(1, 2049, dtype=torch.float32), 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_too_wide, "below 896"),
        (_unaligned, "that 16 divides"),
        (_float32, "float16 or bfloat16"),
        (_many_experts, "at most 2048 experts"),
    ],
)
def test_documented_limits_are_errors(call: Callable[[], object], message: str):
    with pytest.raises(RuntimeError, match=message):
        call()
    assert npu(2).add(1).cpu().isfinite().all()  # the device goes on
