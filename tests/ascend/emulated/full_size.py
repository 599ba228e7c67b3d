"""Run by test_emulated.py: Flash and Pro at full size on fake tensors of device npu.

Every call of a decode step passes torch_npu's schemas and its rules for dtypes and shapes, and nothing is
allocated.  Layers of one kind make the same calls, so the steps run on the first layers, where all kinds are;
the memory is that of all layers.  What a prefill asks the device for (how many tokens an expert has) has no
answer here.
"""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.model.transformer import Transformer
from fourfold.weights.formats import scale_shape
from fourfold.weights.names import checkpoint_spec, parameter_of, scale_name
from fourfold.weights.synth import preset, reduced

GIB = 1 << 30
WEIGHTS = {"flash": 148.6, "pro": 805.3}  # GiB, as the table of tests/ascend/README.md has them


@pytest.fixture(scope="module", autouse=True)
def fake() -> Iterator[None]:
    kernels.table("npu")  # chosen by trials, which need values
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield


def loaded(config: ModelConfig, numerics: str) -> Transformer:
    """The model with weights of the checkpoint's types; routed experts in FP4, linears in FP8."""
    with torch.device("meta"):
        model = Transformer(config, numerics)
    for name, stored in _stored(config).items():
        model.assign(name, stored)
    return model.eval()


def _stored(config: ModelConfig) -> dict[str, Tensor]:
    plain = {"bf16": torch.bfloat16, "f32": torch.float32, "int": torch.int64}
    tensors = {}
    for name, spec in checkpoint_spec(config).items():
        parameter, expert = parameter_of(name)
        if parameter in tensors:
            continue
        stack = () if expert is None else (config.n_routed_experts,)
        if spec.kind in plain:
            tensors[parameter] = torch.empty(spec.shape, dtype=plain[spec.kind], device="npu")
            continue
        fp4 = spec.kind == "expert"
        rows, columns = spec.shape
        shape = (rows, columns // 2) if fp4 else spec.shape
        dtype = torch.int8 if fp4 else torch.float8_e4m3fn
        tensors[parameter] = torch.empty(*stack, *shape, dtype=dtype, device="npu")
        scales = scale_shape(spec.shape, "fp4" if fp4 else "fp8")
        assert scales is not None
        scale = torch.empty(*stack, *scales, dtype=torch.float8_e8m0fnu, device="npu")
        tensors[parameter_of(scale_name(name))[0]] = scale
    return tensors


def step(model: Transformer, past: int, tokens: int) -> None:
    """A step of one sequence that has seen `past` tokens."""
    cache = model.new_cache()
    cache.length = past
    ids = torch.zeros(1, tokens, dtype=torch.int64, device="npu")
    with patch.object(Transformer, "_check_ids"):  # reads the values of ids
        out = model(ids, cache=cache)
    assert out.logits.shape == (1, tokens, model.config.vocab_size)
    assert out.logits.dtype == torch.float32 and out.logits.device.type == "npu"


@pytest.mark.parametrize("like", ["flash", "pro"])
def test_decode_steps(like: str) -> None:
    model = loaded(reduced(preset(like), layers=5), "deployed")
    step(model, past=1 << 17, tokens=1)
    step(model, past=4096 + 127, tokens=8)


@pytest.mark.parametrize("like", ["flash", "pro"])
def test_memory(like: str) -> None:
    weights = sum(tensor.nbytes for tensor in _stored(preset(like)).values())
    assert round(weights / GIB, 1) == WEIGHTS[like]
