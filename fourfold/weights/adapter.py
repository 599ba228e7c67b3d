"""Low-rank adapters in a folder, laid out like PEFT's: adapter_config.json and adapter_model.safetensors.

W becomes W + (lora_alpha / r) · B·A.  Tensors are named base_model.model.<module>.lora_A.weight [r, I] and
.lora_B.weight [O, r], modules by the official names of the base, each expert its own.  The key "fourfold" of
the configuration says which base: an adapter is of use on the weights that it was trained on alone.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors.torch import save_file
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.config_values import parse_json
from fourfold.errors import CheckpointError, ConfigError
from fourfold.weights.layout import check_layout
from fourfold.weights.names import checkpoint_spec, parameter_of
from fourfold.weights.shards import Reader, Stored, read_header

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
LORA_TARGETS = ("*.attn.*", "*.shared_experts.*")
"""What is adapted unless a run says otherwise: what every token meets."""
_PREFIX = "base_model.model."
_ADAPTABLE = re.compile(r"layers\.\d+\.(attn\.(wq_a|wq_b|wkv|wo_a|wo_b)|ffn\.(shared_)?experts\.w[123])")
_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}
_OURS = "fourfold"
_READ = {"peft_type", "r", "lora_alpha", _OURS}
_WITHOUT_EFFECT = {
    "task_type", "auto_mapping", "base_model_name_or_path", "revision", "target_modules", "inference_mode",
    "lora_dropout", "init_lora_weights", "peft_version",
}  # fmt: skip
_NEUTRAL = {"bias": "none"}
"""Keys whose presence changes nothing at this value."""
_SAMPLE = 4096


@dataclass(frozen=True)
class Place:
    """A matrix [O, I] that can have an adapter, or a stack of `experts` such matrices (None: no stack)."""

    out: int
    width: int
    experts: int | None

    def parameters(self, rank: int) -> int:
        """Of an adapter of it."""
        return (self.experts or 1) * rank * (self.out + self.width)


@dataclass(frozen=True)
class StoredAdapter:
    """matrices: by module, experts stacked: (A [r, I] or [E, r, I], B [O, r] or [E, O, r]).

    They are float32 or bf16.
    """

    rank: int
    alpha: float
    matrices: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def scale(self) -> float:
        """Of B·A."""
        return self.alpha / self.rank

    def touches(self, name: str) -> bool:
        """Whether it changes the base's weight `name`."""
        return parameter_of(name)[0].removesuffix(".weight") in self.matrices

    def change(self, name: str) -> Tensor:
        """What it adds to the base's weight `name`, one expert's for one: scale · B·A, [O, I] float32."""
        parameter, expert = parameter_of(name)
        pair = self.matrices[parameter.removesuffix(".weight")]
        a, b = (part if expert is None else part[expert] for part in pair)
        return b.float() @ a.float() * self.scale

    @property
    def digest(self) -> str:
        """Tells it from every adapter that adds something else."""
        found = hashlib.sha256(f"{self.scale!r}".encode())
        for module, pair in sorted(self.matrices.items()):
            for tensor in pair:
                found.update(f" {module} {tensor.dtype} {list(tensor.shape)} ".encode())
                found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:32]


def adaptable(config: ModelConfig) -> dict[str, Place]:
    """The matrices of attention and experts, by module, in the order of the layers; experts as one."""
    places: dict[str, Place] = {}
    for name, spec in checkpoint_spec(config).items():
        parameter, expert = parameter_of(name)
        module = parameter.removesuffix(".weight")
        if _ADAPTABLE.fullmatch(module):
            out, width = spec.shape
            places[module] = Place(out, width, None if expert is None else config.n_routed_experts)
    return places


def targets(config: ModelConfig, patterns: Sequence[str]) -> dict[str, Place]:
    """Those that one of these patterns names, with * and ?.  ConfigError: a pattern names none."""
    places = adaptable(config)
    for pattern in patterns:
        if not fnmatch.filter(places, pattern):
            kinds = dict.fromkeys(re.sub(r"\d+", "*", name, count=1) for name in places)
            raise ConfigError(f"target {pattern!r} names no matrix; allowed: {', '.join(kinds)}")
    return {
        name: place
        for name, place in places.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


def base_fingerprint(folder: Path) -> str:
    """Tells the weights of a checkpoint from others, however they are cut into shards.

    A hash of every weight's name, format, shape and a piece of its bytes: another training run changes them
    all.  ConfigError, CheckpointError: it is no checkpoint.
    """
    found = hashlib.sha256()
    with Reader() as reader:
        for entry in check_layout(folder, ModelConfig.from_file(folder)).values():
            found.update(f"{entry.name} {entry.format} {list(entry.spec.shape)} ".encode())
            for stored in (entry.weight, entry.scale):
                if stored is not None:
                    found.update(_middle(reader, stored))
    return found.hexdigest()[:32]


def _middle(reader: Reader, stored: Stored) -> bytes:
    start = stored.start + max(0, stored.nbytes - _SAMPLE) // 2
    stop = min(start + _SAMPLE, stored.stop)
    piece = Stored(stored.name, stored.file, "U8", (stop - start,), start, stop)
    return reader.copy(piece, torch.empty(stop - start, dtype=torch.uint8)).numpy().tobytes()


def write_adapter(folder: Path, adapter: StoredAdapter, base: str, base_name: str) -> Path:
    """Write `folder`, in the place of an adapter that it may hold; complete or not there at all.

    base: fingerprint of the base; base_name: for readers.  CheckpointError: the folder holds something else.
    """
    held = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if others := sorted(set(held) - {CONFIG, TENSORS}):
        raise CheckpointError(
            f"{folder}: holds {others[0]}, which is no part of an adapter; give another folder"
        )
    tensors: dict[str, Tensor] = {}
    for module, pair in adapter.matrices.items():
        for letter, tensor in zip("AB", pair, strict=True):
            for name, part in _members(module, tensor):
                tensors[f"{_PREFIX}{name}.lora_{letter}.weight"] = part.detach().cpu().contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({module.rpartition(".")[2] for module in adapter.matrices}),
        "inference_mode": True,
        _OURS: {"base": base},
    }
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    save_file(tensors, partial / TENSORS, metadata={"format": "pt"})
    (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def read_adapter(folder: Path, config: ModelConfig, base: str) -> StoredAdapter:
    """The adapter in `folder`, for the base of this configuration and fingerprint; all of it is checked.

    CheckpointError: it was made for another base, or is malformed.
    """
    rank, alpha = _settings(folder, base)
    stored = {tensor.name: tensor for tensor in read_header(folder / TENSORS)}
    names = {match[1] for name in stored if (match := _TENSOR.fullmatch(name))}
    modules = {parameter_of(f"{name}.weight")[0].removesuffix(".weight") for name in names}
    places = adaptable(config)
    if unknown := sorted(modules - places.keys()):
        raise CheckpointError(f"{folder}: adapts {unknown[0]}; allowed: matrices of attention and experts")
    matrices = {}
    with Reader() as reader:
        for module in (name for name in places if name in modules):
            pair = [_matrix(reader, folder, stored, module, places[module], rank, i) for i in (0, 1)]
            matrices[module] = (pair[0], pair[1])
    if stored:
        raise CheckpointError(f"{folder}: {next(iter(stored))} is no tensor of an adapter; remove it")
    if not matrices:
        raise CheckpointError(f"{folder}: {TENSORS} holds no tensors, so it adapts nothing")
    return StoredAdapter(rank, alpha, matrices)


def _settings(folder: Path, base: str) -> tuple[int, float]:
    """Rank and alpha; the base is the right one."""
    file = folder / CONFIG
    try:
        data = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); give the folder of an adapter") from error
    if not isinstance(data, dict) or data.get("peft_type") != "LORA":
        raise CheckpointError(f'{file}: peft_type is not "LORA", the one kind of adapter that is known')
    rank, alpha = data.get("r"), data.get("lora_alpha")
    if not (_is_number(rank) and isinstance(rank, int) and _is_number(alpha)):
        raise CheckpointError(f"{file}: r is {rank!r}, lora_alpha {alpha!r}; allowed: numbers above 0")
    for key, value in data.items():
        if key in _READ | _WITHOUT_EFFECT or value == _NEUTRAL.get(key):
            continue
        if value not in (None, False, {}, []):
            raise CheckpointError(f"{file}: {key} is {value!r}, which this version does not compute")
    own = data.get(_OURS)
    made_for = own.get("base") if isinstance(own, dict) else None
    if made_for != base:
        name = data.get("base_model_name_or_path")
        raise CheckpointError(
            f"{folder}: was made for another base ({name}, fingerprint {made_for}; here it is {base}); "
            "give the base that it was trained on"
        )
    return rank, float(alpha)


def _is_number(value: object) -> TypeGuard[float]:
    """Above 0, and finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _matrix(
    reader: Reader,
    folder: Path,
    stored: dict[str, Stored],
    module: str,
    place: Place,
    rank: int,
    which: int,
) -> Tensor:
    """A (which 0) or B of a module, which are taken out of `stored`."""
    shape = (place.out, rank) if which else (rank, place.width)
    parts = []
    for name in _names(module, place.experts):
        full = f"{_PREFIX}{name}.lora_{'AB'[which]}.weight"
        tensor = stored.pop(full, None)
        if tensor is None:
            raise CheckpointError(
                f"{folder}: lacks {full}; an adapter has A and B of every expert of a layer"
            )
        if tensor.shape != shape or tensor.dtype not in _DTYPES:
            raise CheckpointError(
                f"{tensor}: is {tensor.dtype} {list(tensor.shape)}; allowed: F32 or BF16 {list(shape)}"
            )
        part = reader.copy(tensor, torch.empty(shape, dtype=_DTYPES[tensor.dtype]))
        if not bool(part.isfinite().all()):
            raise CheckpointError(f"{tensor}: has values that are no finite numbers")
        parts.append(part)
    if len({part.dtype for part in parts}) > 1:
        raise CheckpointError(f"{folder}: the experts of {module} have tensors of several types")
    return parts[0] if place.experts is None else torch.stack(parts)


def _names(module: str, experts: int | None) -> list[str]:
    if experts is None:
        return [module]
    stack, _, leaf = module.rpartition(".")
    return [f"{stack}.{number}.{leaf}" for number in range(experts)]


def _members(module: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    if tensor.dim() == 2:
        return [(module, tensor)]
    return list(zip(_names(module, len(tensor)), tensor, strict=True))
