"""Run by test_emulated.py: the emulated runtime itself, and that it refuses what the hardware would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

npu = torch.get_device_module("npu")
FP8 = "950" in npu.get_device_name(0)


def test_a_device_of_its_own_memory_streams_and_events():
    x = torch.arange(4.0).to("npu")
    first, last = npu.Event(enable_timing=True), npu.Event(enable_timing=True)
    with npu.stream(npu.Stream()):
        first.record()
        y = x * 2 + 1
        last.record()
    npu.synchronize()
    assert y.device.type == "npu" and y.cpu().tolist() == [1.0, 3.0, 5.0, 7.0]
    assert first.elapsed_time(last) >= 0
    free, total = npu.mem_get_info()
    assert 0 < free < total and npu.memory_allocated() > 0
    assert torch.accelerator.current_accelerator() == torch.device("npu")


def test_fresh_memory_is_not_zero():
    assert torch.empty(1 << 22, device="npu").isfinite().logical_not().any()


def test_tensors_of_two_devices_do_not_mix():
    with pytest.raises(RuntimeError, match="same device"):
        torch.zeros(3, device="npu") + torch.zeros(3)


def test_a_captured_graph_is_only_recorded_and_then_runs_on_what_its_inputs_hold():
    w, x = torch.randn(8, 8).to("npu"), torch.ones(2, 8, device="npu")
    y = torch.zeros(2, 8, device="npu")
    graph = npu.NPUGraph()
    with npu.graph(graph):
        y.copy_((x @ w).relu())
    assert not y.any()
    for value in (2.0, -3.0):
        x.fill_(value)
        graph.replay()
        expected = (torch.full((2, 8), value) @ w.cpu()).relu()
        assert torch.allclose(y.cpu(), expected, atol=1e-5)


@pytest.mark.parametrize(
    "sync",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x.copy_(torch.ones(4)),
        lambda x: x[x > 0],
        lambda x: npu.synchronize(),
    ],
    ids=["item", "to the host", "from pageable memory", "a shape of values", "synchronize"],
)
def test_a_host_that_waits_cannot_be_captured(sync: Callable[[Tensor], object]):
    x = torch.ones(4, device="npu")
    with pytest.raises(RuntimeError, match="107027"), npu.graph(npu.NPUGraph()):
        sync(x)
    assert (x + 1).cpu().tolist() == [2.0] * 4


def test_an_operator_without_an_aclnn_entry_point_fails():
    x = torch.ones(4, device="npu")
    with pytest.raises(
        RuntimeError, match="only support aclnn" if FP8 else "aclop operator .* is not emulated"
    ):
        torch.linalg.vector_norm(x).item()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu])
def test_only_the_950_has_fp8(dtype: torch.dtype):
    x = torch.ones(4).to(dtype).to("npu")
    assert torch.equal(x.cpu().view(torch.uint8), torch.ones(4).to(dtype).view(torch.uint8))
    if FP8:
        assert x.float().cpu().tolist() == [1.0] * 4
    else:
        with pytest.raises(RuntimeError, match="does not exist on Ascend910"):
            x.float()
