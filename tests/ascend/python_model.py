"""Run by test_python_device.py: the whole model on the pure-Python npu."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import fourfold
from tests.ascend import python_device
from tests.ascend.emulated.engine import (  # noqa: F401
    always,
    test_a_request_gets_what_it_gets_alone,
    tiny,
    witness,
)

HERE = Path(__file__).parent
GOLDEN = Path(fourfold.__file__).parent / "conformance" / "golden"
# Composed by torch of an operator that torch_npu lacks, and runs on the CPU unseen.
_FALL_BACK = {"frexp.Tensor"}

python_device.install()


class _Threads(ThreadPoolExecutor):
    """The engine's thread; torch's modes are a thread's own."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(_on_npu, work, *args, **kwargs)


def _on_npu(work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    with python_device.npu():
        return work(*args, **kwargs)


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("fourfold.engine.engine.ThreadPoolExecutor", _Threads)
    with python_device.npu():
        yield


def test_golden_vectors() -> None:
    with safe_open(GOLDEN / "expected.safetensors", "pt") as file:
        ids, expected = file.get_tensor("input_ids"), file.get_tensor("logits")
        prefill = json.loads(file.metadata()["prefill"])
    model = fourfold.load(GOLDEN, device="npu")
    cache = model.new_cache()
    for step, (first, last) in enumerate([(0, prefill), (prefill, prefill + 1)]):
        out = model(ids[:, first:last].to("npu"), cache=cache, mtp=step == 1)
        assert out.logits.device.type == "npu"
        error = (out.logits[:, -1].cpu() - expected[:, step]).abs().max()
        assert error / expected.std() < 1e-4


@pytest.mark.parametrize("numerics", ["exact", "deployed", "fast"])
def test_the_same_text_as_on_the_cpu(tiny_folder: Path, numerics: str) -> None:
    texts = []
    for name in ("cpu", "npu"):
        model = fourfold.load(tiny_folder, device=name, numerics=numerics)
        ids = fourfold.generate(model, "once upon a time", max_tokens=4, temperature=0.7, seed=3)
        texts.append("".join(ids))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("ram", ["1GiB", "400KiB"], ids=["RAM", "RAM and disk"])
def test_experts_beside_the_device_give_the_same_text(tiny_folder: Path, ram: str) -> None:
    texts = []
    for options in ({}, {"device": "npu"}, {"device": "npu", "device_memory": "1500KiB", "ram": ram}):
        model = fourfold.load(tiny_folder, **options)
        ids = fourfold.generate(model, "once upon a time", max_tokens=8, temperature=0.0)
        texts.append("".join(ids))
    assert texts[0] == texts[1] == texts[2]
    assert model.tiers is not None
    stats = model.tiers.stats()
    assert stats.on_device == 10 and stats.device_hits > 0 and stats.hits > 0
    assert (stats.slots < 30) == (ram == "400KiB")


def test_experts_placed_by_counts_give_the_same_text(tiny_folder: Path, tmp_path: Path) -> None:
    texts, hits = [], []
    for _ in range(2):
        model = fourfold.load(
            tiny_folder, "npu", device_memory="1500KiB", ram="1GiB", expert_counts=tmp_path / "counts.json"
        )
        ids = fourfold.generate(model, "once upon a time", max_tokens=8, temperature=0.0)
        texts.append("".join(ids))
        assert model.tiers is not None
        hits.append(model.tiers.stats().device_hits)
        model.tiers.close()
    assert texts[0] == texts[1] and hits[0] < hits[1]


def test_nothing_can_be_on_cuda() -> None:
    with pytest.raises((AssertionError, RuntimeError), match="CUDA"):
        torch.zeros(1, device="cuda")


def test_every_operator_is_one_of_torch_npu() -> None:
    """The last of this file: what the others used; what torch composes of others is none."""
    native = set((HERE / "torch_npu_operators.txt").read_text().split())
    used = {name.removeprefix("aten.").removesuffix(".default") for name in python_device.calls}
    assert "mm" in used
    missing = {name for name in used - native if name in _FALL_BACK or not _composed(name)}
    assert missing == set(), "torch_npu would run these on the CPU"


def _composed(name: str) -> bool:
    """The last: an in-place form that torch makes of the one with an out argument."""
    keys = (
        "CompositeImplicitAutograd",
        "CompositeExplicitAutograd",
        "CompositeExplicitAutogradNonFunctional",
    )
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", key) for key in keys)
