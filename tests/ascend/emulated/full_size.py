"""Run by test_emulated.py: Flash and Pro at full width on fake tensors of device npu.

Every call of a prefill and of decode steps passes torch_npu's schemas and its rules for dtypes and shapes,
and nothing is allocated.  Layers of one kind make the same calls, so the steps run on layers of all kinds;
the memory of weights and KV cache is that of all layers.  Where the host asks what the device computed (how
many tokens an expert has), the test answers with the worst that can be.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.kernels import attention_reference
from fourfold.kernels.ascend import aten
from fourfold.model.numerics import numerics
from fourfold.model.paged import PagedCache
from fourfold.model.paged_layout import Span
from fourfold.model.paged_shape import Shape
from fourfold.model.transformer import Transformer
from fourfold.weights.formats import Format, scale_shape, stored_shape
from fourfold.weights.layout import INTEGERS
from fourfold.weights.names import TensorSpec, checkpoint_spec, parameter_of, scale_name
from fourfold.weights.recipes import recipe_format
from fourfold.weights.synth import preset, reduced
from tests.ascend.emulation import MEASURED

GIB = 1 << 30
CONTEXT, CHUNK = 1 << 17, 4096
NUMERICS = "deployed"
_KINDS: dict[str, Format] = {"expert": "fp4", "linear": "fp8", "bf16": "bf16", "f32": "f32", "int": "int"}
_DTYPES = {
    "fp4": torch.int8, "fp8": torch.float8_e4m3fn, "int8": torch.int8, "int4": torch.uint8,
    "bf16": torch.bfloat16, "f32": torch.float32, "int": torch.int64,
}  # fmt: skip
_SCALES = {"int8": torch.float32, "int4": torch.int64}


@dataclasses.dataclass(frozen=True)
class Deployment:
    """A model over so many devices, each with its share of the experts.

    heads: into how many parts the attention heads and their output groups are cut.  All other weights and
    the KV cache are on every device.
    """

    like: str
    recipe: str | None
    devices: int
    heads: int

    @property
    def config(self) -> ModelConfig:
        """What one device computes."""
        whole = preset(self.like)
        return dataclasses.replace(
            whole,
            n_routed_experts=whole.n_routed_experts // self.devices,
            num_attention_heads=whole.num_attention_heads // self.heads,
            o_groups=whole.o_groups // self.heads,
        )

    def __str__(self) -> str:
        return f"{self.like.capitalize()}, {self.recipe or 'as published'} | {self.devices}"


# A2 and A3: eight devices for Flash; 32 for Pro, as others run it, its 16 output groups over half of them.
# The 950's attention operators want 64 or 128 heads: there every device has them all.
INT = [Deployment("flash", "w8a8", 8, heads=8), Deployment("pro", "w4a8", 32, heads=16)]
DEPLOYMENTS = {
    "Ascend910B1": ("A2", 64, INT),
    "Ascend910_9391": ("A3", 64, INT),
    "Ascend950DT_950x": (
        "A5", 96, [Deployment("flash", None, 4, heads=1), Deployment("pro", None, 16, heads=1)],
    ),
}  # fmt: skip
GENERATION, MEMORY, HERE = DEPLOYMENTS[torch.get_device_module("npu").get_device_name(0)]


@pytest.fixture(scope="module", autouse=True)
def fake() -> Iterator[None]:
    kernels.table("npu")  # chosen by trials, which need values
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield


def stored(config: ModelConfig, recipe: str | None) -> dict[str, Tensor]:
    """Weights and scales by parameter, as they are in memory."""
    tensors = {}
    for name, spec in checkpoint_spec(config).items():
        parameter, expert = parameter_of(name)
        if parameter in tensors:
            continue
        stack = () if expert is None else (config.n_routed_experts,)
        fmt = _format(recipe, name, spec)
        shape = stored_shape(spec.shape, fmt)
        tensors[parameter] = torch.empty(*stack, *shape, dtype=_DTYPES[fmt], device="npu")
        scales = spec.shape[:1] if fmt in INTEGERS else scale_shape(spec.shape, fmt)
        if scales is not None:
            dtype = _SCALES.get(fmt, torch.float8_e8m0fnu)
            tensors[parameter_of(scale_name(name))[0]] = torch.empty(
                *stack, *scales, dtype=dtype, device="npu"
            )
    return tensors


def _format(recipe: str | None, name: str, spec: TensorSpec) -> Format:
    converted = None if recipe is None else recipe_format(recipe, name, spec)
    return converted or _KINDS[spec.kind]


def loaded(deployment: Deployment) -> Transformer:
    """Three layers of it: window, CSA and HCA, one of them routed by token id."""
    config = reduced(deployment.config, layers=3)
    assert set(config.layer_kinds) >= {"csa", "hca"} and any(config.hash_layers)
    with torch.device("meta"):
        model = Transformer(config, NUMERICS)
    for name, tensor in stored(config, deployment.recipe).items():
        model.assign(name, tensor)
    return model.eval()


class Peak(TorchDispatchMode):
    """The most bytes that tensors made since the beginning held on the device at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == "npu":
                storage = tensor.untyped_storage()
                if id(storage) not in before and storage not in self._known:
                    self._add(storage)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._known.add(storage)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, storage.nbytes())

    def _gone(self, size: int) -> None:
        self.now -= size


def worst_loads(numbers: Tensor, rows: Tensor, choices: int) -> list[tuple[int, int]]:
    """All tokens chose the same experts."""
    tokens = len(numbers) // choices
    return [(tokens if row < choices else 0, row) for row in range(len(rows))]


@contextmanager
def answers(config: ModelConfig) -> Iterator[None]:
    """In the place of values that fake tensors do not have."""
    loads = functools.partial(worst_loads, choices=config.num_experts_per_tok)
    reach = config.sliding_window - 1
    with (
        patch.object(Transformer, "_check_ids"),
        patch.object(aten, "loads", loads),
        patch.object(attention_reference, "_bounds", lambda rows: (0, reach + rows.shape[1])),
    ):
        yield


def step(model: Transformer, cache: PagedCache, spans: list[Span]) -> float:
    """Peak of a call, in GiB; logits of each span's last token."""
    tokens = sum(span.new for span in spans)
    ids = torch.zeros(tokens, dtype=torch.int64, device="npu")
    last = torch.tensor([span.new for span in spans]).cumsum(0) - 1
    with answers(model.config), Peak() as peak:
        logits = model.paged(ids, spans, cache, last.to("npu"))
        cache.commit()
    assert logits.shape == (len(spans), model.config.vocab_size)
    assert logits.dtype == torch.float32 and logits.device.type == "npu"
    return peak.most / GIB


def captured(model: Transformer, cache: PagedCache, spans: list[Span]) -> None:
    """A decode step of two places more, as it is captured: nothing in it asks for values."""
    fixed = cache.fixed_step(len(spans) + 2, CONTEXT)
    fixed.fill(spans, [0] * len(spans))
    streams, logits = model.paged_fixed(fixed, cache)
    cache.commit()
    assert streams.shape[:2] == (1, fixed.batch) and logits.shape == (fixed.batch, model.config.vocab_size)


@pytest.mark.parametrize("deployment", HERE, ids=str)
def test_prefill_and_decode(deployment: Deployment) -> None:
    model, slots = loaded(deployment), 4
    blocks = CONTEXT // model.cache_shape.block_tokens
    cache = model.new_paged_cache(slots=slots, blocks=blocks + slots, call_tokens=CHUNK)
    cache.assign(0, list(range(blocks)))
    for slot in range(1, slots):
        cache.assign(slot, [blocks + slot])
    prefill = step(model, cache, [Span(0, CONTEXT - CHUNK, CHUNK)])
    decode = step(model, cache, [Span(0, CONTEXT - 1, 1)])
    step(model, cache, [Span(slot, 60 + slot, 2) for slot in range(slots)])  # several, drafted tokens
    captured(model, cache, [Span(0, CONTEXT - 1, 1), Span(1, 70, 1)])
    weights = sum(tensor.nbytes for tensor in stored(deployment.config, deployment.recipe).values()) / GIB
    shape = Shape.of(deployment.config, numerics(NUMERICS))
    kv = (shape.slot_bytes + blocks * shape.block_bytes) / GIB
    staged = CHUNK * shape.staged_bytes / GIB
    total = weights + kv + staged + max(prefill, decode)
    sizes = " | ".join(f"{size:.2f}" for size in (weights, kv, staged, prefill, decode, total))
    print(f"\n{MEASURED}| {GENERATION} | {deployment} | {sizes} | {MEMORY} |")
    assert total < 0.9 * MEMORY
