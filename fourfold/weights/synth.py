"""Random checkpoints in the official layout, shaped like a published model or smaller, streamed to disk.

The weights are random but behave: every matrix keeps the variance of what it multiplies, norms are near 1,
hash tables name distinct experts.  A tensor depends on the seed and its name alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.config_values import require
from fourfold.errors import ConfigError
from fourfold.kernels.formats import E2M1_VALUES, FP4_GROUP
from fourfold.weights.formats import E8M0_BIAS, Format, scale_shape
from fourfold.weights.names import TensorSpec, checkpoint_spec, scale_name
from fourfold.weights.shards import Pending
from fourfold.weights.writer import SHARD_SIZE, write_folder

PRESETS = ("flash", "pro", "flash-base", "pro-base")

_CHUNK = 1 << 24  # values drawn at a time: an embedding in float32 would not fit where its bf16 does
# Of the FP8 codes, at most: the outermost of 256 quantiles, 2.9 deviations, stays below 448.
_FP8_DEVIATION = 150.0
# Mean, and standard deviation where it does not follow from the width, by the end of the name.
_STATISTICS = {
    "norm.weight": (1.0, 0.1),
    "embed.weight": (0.0, 1.0),
    ".ape": (0.0, 0.3),
    ".attn_sink": (0.0, 1.0),
    ".gate.bias": (0.0, 0.1),
    "_base": (0.0, 0.4),
    "_scale": (0.5, 0.1),
}


def synthesise(
    dst: Path | str,
    *,
    like: str = "flash",
    layers: int | None = None,
    experts: int | None = None,
    hidden: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    shard_size: int = SHARD_SIZE,
    progress: bool = True,
    overwrite: bool = False,
) -> ModelConfig:
    """Write a random checkpoint as the folder `dst`; returns its config.

    like: "flash", "pro", "flash-base", "pro-base", or the path of a config.json.  layers, experts, hidden
    reduce it (see `reduced`); overrides: any other keys of config.json.  Experts are stored as
    config.json's expert_dtype says (FP4, or FP8 in Base), linears in FP8.
    """
    config = reduced(preset(like), layers=layers, experts=experts, hidden=hidden, overrides=overrides)
    pending = list(_tensors(config, seed))
    write_folder(Path(dst), config, pending, shard_size=shard_size, progress=progress, overwrite=overwrite)
    return config


def preset(like: str) -> ModelConfig:
    """The config of a published model by name, or of the config.json at a path."""
    if like in PRESETS:
        with resources.as_file(resources.files("fourfold") / "configs" / f"{like}.json") as file:
            return ModelConfig.from_file(file)
    if not Path(like).exists():
        raise ConfigError(f"like is {like!r}; allowed: {', '.join(PRESETS)}, or the path of a config.json")
    return ModelConfig.from_file(like)


def reduced(
    config: ModelConfig,
    *,
    layers: int | None = None,
    experts: int | None = None,
    hidden: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """The model with fewer layers, experts or channels, and with `overrides` of config.json's keys.

    Few layers keep the first ones' pattern, from the first place where all compressed kinds occur, and at
    most half of them are routed by token id.
    """
    overrides = dict(overrides or {})
    changes: dict[str, Any] = {}
    if layers is not None:
        most = config.num_hidden_layers
        require(1 <= layers <= most, "layers", layers, f"1 to {most}, those of the model")
        window = _window_of_all_kinds(config.layer_kinds, layers)
        hashed = min(sum(config.hash_layers), layers // 2)
        changes |= {
            "num_hidden_layers": layers,
            "layer_kinds": config.layer_kinds[window],
            "layer_ratios": config.layer_ratios[window],
            "hash_layers": tuple(i < hashed for i in range(layers)),
        }
    if experts is not None:
        chosen = min(config.num_experts_per_tok, experts)
        changes |= {"n_routed_experts": experts, "num_experts_per_tok": chosen}
    if hidden is not None:
        changes["hidden_size"] = hidden
    if overrides.get("num_nextn_predict_layers") == 0:
        changes |= {"num_nextn_predict_layers": 0, "mtp_kinds": (), "mtp_ratios": ()}
    return ModelConfig.from_json(dataclasses.replace(config, **changes).to_json() | overrides)


def _window_of_all_kinds(kinds: Sequence[str], layers: int) -> slice:
    wanted = set(kinds) - {"swa"}
    for start in range(len(kinds) - layers + 1):
        if wanted <= set(kinds[start : start + layers]):
            return slice(start, start + layers)
    return slice(layers)  # too few for all kinds


def _tensors(config: ModelConfig, seed: int) -> Iterator[Pending]:
    stored = config.expert_dtype
    require(stored in (None, "fp4", "fp8"), "expert_dtype", stored, "fp4, fp8 for a random checkpoint")
    expert_format: Format = "fp8" if stored == "fp8" else "fp4"
    if expert_format == "fp4":
        for key in ("hidden_size", "moe_intermediate_size"):
            width = getattr(config, key)
            require(width % FP4_GROUP == 0, key, width, f"multiples of {FP4_GROUP}, which FP4 experts need")
    for name, spec in checkpoint_spec(config).items():
        if spec.kind in ("expert", "linear"):
            yield from _packed(name, spec.shape, expert_format if spec.kind == "expert" else "fp8", seed)
        elif spec.kind == "int":
            hashed = functools.partial(_hash_table, name, spec.shape, config.n_routed_experts, seed)
            yield Pending(name, "I64", spec.shape, hashed)
        else:
            dtype = "BF16" if spec.kind == "bf16" else "F32"
            yield Pending(name, dtype, spec.shape, functools.partial(_normal, name, spec, seed))


def _source(name: str, seed: int) -> np.random.SFC64:
    return np.random.SFC64([seed, zlib.crc32(name.encode())])


def _normal(name: str, spec: TensorSpec, seed: int) -> Tensor:
    """bf16 or float32 values of the statistics that belong to the name."""
    mean, deviation = 0.0, 1 / math.sqrt(spec.shape[-1])
    for ending, statistics in _STATISTICS.items():
        if name.endswith(ending):
            mean, deviation = statistics
    generator = np.random.Generator(_source(name, seed))
    out = torch.empty(math.prod(spec.shape), dtype=torch.bfloat16 if spec.kind == "bf16" else torch.float32)
    for begin in range(0, out.numel(), _CHUNK):
        part = out[begin : begin + _CHUNK]
        values = torch.from_numpy(generator.standard_normal(part.numel(), dtype=np.float32))
        part.copy_(values.mul_(deviation).add_(mean))
    return out.view(spec.shape)


def _hash_table(name: str, shape: tuple[int, ...], experts: int, seed: int) -> Tensor:
    """tid2eid [V, K] int64: K distinct experts for each token id."""
    draws = np.random.Generator(_source(name, seed)).random((shape[0], experts), dtype=np.float32)
    return torch.from_numpy(np.argsort(draws, axis=1)[:, : shape[1]].astype(np.int64))


def _packed(name: str, shape: tuple[int, ...], fmt: Format, seed: int) -> Iterator[Pending]:
    scales = scale_shape(shape, fmt)
    assert scales is not None
    deviation = 1 / math.sqrt(shape[-1])
    if fmt == "fp4":
        # The sixteen codes, equally often, are close to a normal distribution cut at two deviations.
        pairs = (*shape[:-1], shape[-1] // 2)
        rms = math.sqrt(sum(value**2 for value in E2M1_VALUES) / len(E2M1_VALUES))
        yield Pending(name, "I8", pairs, functools.partial(_codes, name, pairs, None, seed))
    else:
        # One scale for the matrix, and codes whose deviation makes up for its being a power of two.
        power = 2.0 ** math.ceil(math.log2(deviation / _FP8_DEVIATION))
        table = _fp8_table(deviation / power)
        rms = deviation / power
        yield Pending(name, "F8_E4M3", shape, functools.partial(_codes, name, shape, table, seed))
    load = functools.partial(_scales, name, scales, deviation / rms, seed)
    yield Pending(scale_name(name), "F8_E8M0", scales, load)


@functools.cache
def _fp8_table(deviation: float) -> Tensor:
    """256 equally likely values of a normal distribution as e4m3 bytes."""
    quantiles = [NormalDist(0, deviation).inv_cdf((i + 0.5) / 256) for i in range(256)]
    return torch.tensor(quantiles).to(torch.float8_e4m3fn).view(torch.uint8)


def _codes(name: str, shape: tuple[int, ...], table: Tensor | None, seed: int) -> Tensor:
    raw = _bytes(name, math.prod(shape), seed)
    return torch.from_numpy(raw if table is None else table.numpy()[raw]).view(shape)


def _scales(name: str, shape: tuple[int, ...], target: float, seed: int) -> Tensor:
    """Powers of two around `target`, the two nearest, mixed so that their mean square is target's square."""
    low = math.floor(math.log2(target))
    share = ((target / 2.0**low) ** 2 - 1) / 3
    higher = _bytes(scale_name(name), math.prod(shape), seed) < round(share * 256)
    return torch.from_numpy(higher.astype(np.uint8) + np.uint8(low + E8M0_BIAS)).view(shape)


def _bytes(name: str, count: int, seed: int) -> npt.NDArray[np.uint8]:
    """Random bytes, eight at a time as the generator makes them."""
    return _source(name, seed).random_raw(-(-count // 8)).view(np.uint8)[:count]
