"""Run by test_operators.py: which form runs each operation, and that every form computes what it should."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import fourfold
from fourfold import kernels
from fourfold.conformance.kernel_cases import Case, cases
from fourfold.conformance.kernels import _moved, run_case
from fourfold.conformance.logits import distance
from fourfold.kernels import reference, registry
from fourfold.kernels.ascend import forms, int4, shared_kv
from fourfold.kernels.ascend.schemas import SCHEMAS
from tests.ascend import fake_operators, python_device

python_device.install()


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device of generation A2 whose kernels are looked for anew."""
    monkeypatch.setattr(python_device.Module, "name", "Ascend910B1")
    _forget()
    with python_device.npu():
        yield
    _forget()


def _forget() -> None:
    kernels.unregister("npu")
    registry._SEARCHED.discard("npu")
    fake_operators.used.clear()


@pytest.fixture
def install() -> Iterator[Callable[..., None]]:
    """install(names, ...): fakes for the length of a test."""
    installed = []
    yield lambda names, **how: installed.append(fake_operators.Installed(names, **how))
    for fakes in installed:
        fakes.remove()


def _failed(wanted: Callable[[Case], bool]) -> list[str]:
    chosen = [case for case in cases() if wanted(case)]
    assert chosen
    return [f"{c.operation}: {c.label}" for c in chosen if not run_case(c, "npu").relative <= c.bound]


def test_without_torch_npus_operators_all_runs_in_plain_aten():
    table = kernels.table("npu")
    assert table["rms_norm"].startswith("T0 aten; ")
    assert "T1 npu_rms_norm refused: npu_rms_norm is missing" in table["rms_norm"]
    assert table["pool"] == "T0 aten"
    assert _failed(lambda case: case.operation not in ("experts", "linear")) == []


def test_weights_of_every_format_are_read_without_their_types():
    python_device.calls.clear()
    assert _failed(lambda case: case.operation in ("experts", "linear")) == []
    assert not [name for name in python_device.calls if "frexp" in name or "ldexp" in name]


def test_public_operators_are_used_and_compute_the_same(install):
    install(fake_operators.PUBLIC)
    table = kernels.table("npu")
    for name in ("rms_norm", "rope", "route_topk", "route_hash", "grouped_linear", "linear", "experts"):
        assert table[name].startswith("T1 "), table[name]
    fake_operators.used.clear()  # the trials'
    mine = ("rms_norm", "rope", "route_topk", "route_hash", "grouped_linear")
    stored = ("linear", "experts")
    assert _failed(lambda c: c.operation in mine or (c.operation in stored and "int8" in c.label)) == []
    assert set(fake_operators.used) >= {
        "npu::npu_rms_norm",
        "npu::npu_rotary_mul",
        "npu::npu_moe_gating_top_k",
        "npu::npu_quant_matmul",
        "npu::npu_moe_init_routing_v2",
        "npu::npu_grouped_matmul",
        "npu::npu_dequant_swiglu_quant",
    }


@pytest.mark.parametrize("few", [64, 4])
def test_int4_experts_are_multiplied_as_whole_numbers(install, monkeypatch, few):
    """A step's choices one by one, and a prompt's expert by expert."""
    install(fake_operators.PUBLIC)
    assert "(int4 weights, int8 inputs)" in kernels.table("npu")["experts"]
    monkeypatch.setattr(int4, "_FEW_TOKENS", few)
    fake_operators.used.clear()
    assert (
        _failed(lambda c: c.operation == "experts" and "int4" in c.label and "inputs int8" in c.label) == []
    )
    assert fake_operators.used["npu::npu_dequant_swiglu_quant"]
    assert bool(fake_operators.used["npu::npu_moe_init_routing_v2"]) == (few == 4)


def test_hyper_connections_are_the_950s(install, monkeypatch):
    install(fake_operators.PUBLIC)
    assert "A2 is not in its documentation (A5 are)" in kernels.table("npu")["hc_pre"]
    monkeypatch.setattr(python_device.Module, "name", "Ascend950DT_9591")
    _forget()
    assert kernels.table("npu")["hc_pre"].startswith("T1 npu_mhc_pre + npu_mhc_sinkhorn (bf16 streams)")
    fake_operators.used.clear()
    assert _failed(lambda case: case.operation in ("hc_pre", "hc_post")) == []
    assert fake_operators.used["npu::npu_mhc_post"]


def test_the_950_multiplies_the_published_formats(install, monkeypatch):
    install(fake_operators.PUBLIC)
    monkeypatch.setattr(python_device.Module, "name", "Ascend950DT_9591")
    _forget()
    table = kernels.table("npu")
    assert table["linear"].startswith("T1 npu_quant_matmul (FP8 weights and inputs")
    assert "T1 npu_grouped_matmul (FP4 weights, FP8 inputs of bf16)" in table["experts"]
    fake_operators.used.clear()
    assert _failed(lambda c: c.operation in ("linear", "experts", "shared_expert", "moe")) == []
    assert fake_operators.used["npu::npu_quant_matmul"] and fake_operators.used["npu::npu_grouped_matmul"]


def test_another_schema_is_refused(install):
    schema = SCHEMAS["npu::npu_rms_norm"].replace("epsilon=1e-06", "epsilon=1e-05")
    install(["npu::npu_rms_norm"], schema={"npu::npu_rms_norm": schema})
    assert (
        "npu_rms_norm has another schema: npu::npu_rms_norm(Tensor input" in kernels.table("npu")["rms_norm"]
    )


def test_another_meaning_is_refused(install):
    def half(x: Tensor, r1: Tensor, r2: Tensor, *_: object) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return x * r1 + torch.cat([-right, left], dim=-1) * r2

    install(["npu::npu_rotary_mul"], npu_rotary_mul=half)
    assert "refused: a trial is " in kernels.table("npu")["rope"]


def test_an_operator_that_fails_is_refused(install):
    def fail(*_: object) -> Tensor:
        raise RuntimeError("requires CANN >= 9.0.0\nand more")

    install(["npu::npu_rms_norm"], npu_rms_norm=fail)
    assert "refused: a trial failed: requires CANN >= 9.0.0" in kernels.table("npu")["rms_norm"]


def test_beyond_a_limit_the_lower_tier_runs_and_it_is_said_once(install, capsys):
    install(["npu::npu_moe_gating_top_k"])
    x, weight = torch.randn(2, 8).to("npu"), torch.randn(2049, 8).to("npu")
    for _ in range(2):
        indices, _, _ = kernels.route_topk(x, weight, torch.zeros(2049).to("npu"), 2, 1.0)
    assert indices.shape == (2, 2)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "fourfold: route_topk runs on a lower tier than T1 npu_moe_gating_top_k: 2 of 2049 experts, "
        "allowed: at most 64 of 3 to 2048"
    ]


@pytest.mark.parametrize("space", ["custom", "_C_ascend", "cann_ops_transformer"])
def test_packages_are_used_under_their_own_schemas(install, monkeypatch, space):
    monkeypatch.setattr(python_device.Module, "name", "Ascend910_9391")
    names = [name for name in SCHEMAS if name.startswith(f"{space}::")]
    install(names)
    table = kernels.table("npu")
    assert table["rope"].startswith(f"T2 {space}.inplace_partial_rotary_mul (all calls")
    fake_operators.used.clear()
    assert _failed(lambda case: case.operation == "rope") == []
    assert fake_operators.used[f"{space}::inplace_partial_rotary_mul"]
    if space != "cann_ops_transformer":
        assert table["hc_pre"].startswith(f"T2 {space}.npu_hc_pre")
        assert table["hc_post"].startswith(f"T2 {space}.npu_hc_post")


@pytest.mark.parametrize("space", ["custom", "_C_ascend"])
def test_captured_attention_is_the_packages(install, space):
    install([name for name in SCHEMAS if name.startswith(f"{space}::npu_sparse_attn")])
    title = f"T2 {space}.npu_sparse_attn_sharedkv + {space}.npu_sparse_attn_sharedkv_metadata"
    assert kernels.table("npu")["sparse_attention"].startswith(
        f"{title} (captured steps in bf16), otherwise T0"
    )
    for arguments in (shared_kv.trial(), shared_kv.trial(900, 700), shared_kv.trial(1500, 1300)):
        q, window, seen, entries, _, index, *rest = arguments
        alone = (q, window, seen, None, None, None, *rest)
        pool = (q, window, seen, entries[:1].expand(4, -1, -1), None, index, *rest)
        for case in (arguments, alone, pool):
            fake_operators.used.clear()
            got = kernels.sparse_attention(*_moved(case, "npu")).cpu()
            assert fake_operators.used[f"{space}::npu_sparse_attn_sharedkv"] == 1
            assert forms._distance(got, reference.sparse_attention(*case)) < shared_kv.BOUND


def test_attention_of_other_heads_is_on_the_lower_tier(install, capsys):
    install([name for name in SCHEMAS if name.startswith("custom::npu_sparse_attn")])
    q, window, seen, *rest, sink, scale, rounding = shared_kv.trial()
    few = (q[:, :, :8], window, seen, *rest, sink[:8], scale, rounding)
    got = kernels.sparse_attention(*_moved(few, "npu")).cpu()
    assert "8 heads of 512, allowed: 64 or 128 of 512" in capsys.readouterr().err
    assert forms._distance(got, reference.sparse_attention(*few)) < shared_kv.BOUND


def test_the_highest_tier_can_be_named(install, monkeypatch):
    install(fake_operators.PUBLIC)
    monkeypatch.setenv("FOURFOLD_ASCEND_TIER", "T0")
    assert "T1 npu_rms_norm refused: FOURFOLD_ASCEND_TIER=T0" in kernels.table("npu")["rms_norm"]
    monkeypatch.setenv("FOURFOLD_ASCEND_TIER", "T9")
    _forget()
    with pytest.raises(fourfold.KernelError, match="'T9'; allowed: T0, T1, T2"):
        kernels.table("npu")


@pytest.mark.parametrize("numerics", ["exact", "deployed", "fast"])
def test_the_model_computes_on_npu_what_it_computes_on_the_cpu(install, tiny_folder, numerics):
    install(fake_operators.PUBLIC)
    ids = torch.arange(60).remainder(397).view(1, -1)
    ours = fourfold.load(tiny_folder, device="npu", numerics=numerics)
    cache = ours.new_cache()
    got = torch.cat(
        [ours(part.to("npu"), cache=cache).logits.cpu() for part in ids.split([50, 9, 1], dim=1)], 1
    )
    theirs = fourfold.load(tiny_folder, numerics=numerics)
    # Random weights have no margins: a last bit sends some tokens to other experts.
    bound = {"exact": 1e-4, "deployed": 0.3, "fast": 0.1}[numerics]
    assert distance(got, theirs(ids).logits).typical < bound
