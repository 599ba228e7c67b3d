"""Writes a checkpoint folder in the official layout: shards, index, config.json, tokenizer files.

The folder appears whole or not at all: it is written beside its destination, checked like any checkpoint
that we would load, and renamed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.config_keys import QUANTIZATION
from fourfold.errors import CheckpointError
from fourfold.weights.layout import INDEX, SINGLE, check_layout, check_tensors
from fourfold.weights.progress import byte_progress
from fourfold.weights.shards import HEADER_DTYPES, Pending, Stored, write_file

SHARD_SIZE = 5_000_000_000
"""Bytes of tensors a shard holds at most, unless one tensor is larger."""
SIDE_FILES = ("generation_config.json", "tokenizer*.json", "special_tokens_map.json", "LICENSE*")
"""Files that go along with the weights, as glob patterns."""
_OURS = ("config.json", SINGLE, INDEX, "model-*-of-*.safetensors", *SIDE_FILES)


def write_checkpoint(
    dst: Path | str,
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    side_files_from: Path | str | None = None,
    shard_size: int = SHARD_SIZE,
    progress: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write tensors, (official name, tensor as stored), with their scales, as the checkpoint folder `dst`.

    Tokenizer, generation settings and licence are copied from the folder `side_files_from`.  The tensors
    are held in memory until they are written; `write_folder` streams.  Raises CheckpointError.
    """
    pending = []
    for name, tensor in tensors:
        if tensor.dtype not in HEADER_DTYPES:
            allowed = ", ".join(str(dtype) for dtype in HEADER_DTYPES)
            raise CheckpointError(f"{name}: {tensor.dtype} cannot be stored; allowed: {allowed}")
        load = functools.partial(_itself, tensor)
        pending.append(Pending(name, HEADER_DTYPES[tensor.dtype], tuple(tensor.shape), load))
    sides = side_files(Path(side_files_from)) if side_files_from is not None else []
    return write_folder(
        Path(dst), config, pending, sides, shard_size=shard_size, progress=progress, overwrite=overwrite
    )


def write_folder(
    dst: Path,
    config: ModelConfig,
    pending: Sequence[Pending],
    sides: Sequence[Path] = (),
    *,
    shard_size: int,
    progress: bool,
    overwrite: bool,
) -> Path:
    """Write `pending`, in the order of the layers, and `sides` as the checkpoint folder `dst`; returns it.

    config.json is `config` with expert_dtype and quantization_config as the tensors say.  overwrite: a
    folder that holds nothing but what this writes may be replaced.  Raises CheckpointError, before the first
    byte is written for all that names, shapes and types tell.
    """
    if shard_size < 1:
        raise CheckpointError(f"shard_size is {shard_size}; allowed: 1 byte or more")
    total = sum(tensor.nbytes for tensor in pending)
    data = _config_json(config, pending)
    planned = {t.name: Stored(t.name, dst, t.dtype, t.shape, 0, t.nbytes) for t in pending}
    check_tensors(dst, planned, ModelConfig.from_json(data))
    with _appearing(dst, total, overwrite) as folder:
        _write_json(folder / "config.json", data)
        for file in sides:
            shutil.copyfile(file, folder / file.name)
        shards = list(_shards(pending, shard_size))
        weight_map: dict[str, str] = {}
        with byte_progress("writing", total, show=progress) as advance:
            for i, shard in enumerate(shards, start=1):
                name = SINGLE if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
                weight_map |= dict.fromkeys(write_file(folder / name, shard, advance), name)
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            _write_json(folder / INDEX, index)
        check_layout(folder, ModelConfig.from_file(folder))
    return dst


def side_files(folder: Path) -> list[Path]:
    """Tokenizer, generation settings and licence of a checkpoint folder: what it has of SIDE_FILES."""
    return sorted(file for pattern in SIDE_FILES for file in folder.glob(pattern) if file.is_file())


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _shards(pending: Sequence[Pending], shard_size: int) -> Iterator[list[Pending]]:
    shard: list[Pending] = []
    size = 0
    for tensor in pending:
        if shard and size + tensor.nbytes > shard_size:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.nbytes
    yield shard


def _config_json(config: ModelConfig, pending: Sequence[Pending]) -> dict[str, Any]:
    spelled = {"F8_E4M3": "fp8", "BF16": "bf16", "F32": "f32"}
    dtypes = {t.name: t.dtype for t in pending if t.name.endswith(".weight")}
    experts = {spelled.get(dtype, "fp4") for name, dtype in dtypes.items() if ".ffn.experts." in name}
    # Layers that differ are for the reader to find in the headers; config.json has one word for all.
    expert_dtype = experts.pop() if len(experts) == 1 else None
    data = dataclasses.replace(config, expert_dtype=expert_dtype).to_json()
    data.pop("quantization_config", None)
    if not set(dtypes.values()) <= {"BF16", "F32"}:
        data["quantization_config"] = dict(QUANTIZATION)
    return data


def _write_json(file: Path, data: dict[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _appearing(dst: Path, total: int, overwrite: bool) -> Iterator[Path]:
    """A folder to write into, which becomes `dst` if the body succeeds and is removed if not."""
    try:
        dst = dst.resolve()  # a link stays one, and "." has a name
        _check_replaceable(dst, overwrite)
        dst.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(dst.parent).free
        if free < total:
            raise CheckpointError(f"{dst}: needs {total / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free")
        # Not hidden: a process that is killed leaves it behind, and it may be large.
        temporary = dst.parent / f"{dst.name}.partial-{os.getpid()}"
        temporary.mkdir()
        try:
            yield temporary
            _check_replaceable(dst, overwrite)  # again: writing may have taken an hour
            _move(temporary, dst)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"{dst}: cannot be written ({error})") from error


def _check_replaceable(dst: Path, overwrite: bool) -> None:
    """Nothing is lost by replacing `dst`: it is not there, or empty, or may be overwritten and holds nothing
    but what we write.
    """
    if not dst.exists():
        return
    if not dst.is_dir():
        raise CheckpointError(f"{dst}: is a file; give a folder")
    found = sorted(dst.iterdir())
    if found and not overwrite:
        raise CheckpointError(f"{dst}: exists and is not empty; give another folder or allow overwriting")
    for path in found:
        if not path.is_file() or not any(path.match(pattern) for pattern in _OURS):
            raise CheckpointError(
                f"{dst}: holds {path.name}, which would be lost, as it is no file of a checkpoint; move it "
                "away or give another folder"
            )


def _move(temporary: Path, dst: Path) -> None:
    old = dst.parent / f"{dst.name}.old-{os.getpid()}"
    if dst.exists():
        dst.rename(old)
    try:
        temporary.rename(dst)
    except OSError:
        if old.exists():
            old.rename(dst)
        raise
    shutil.rmtree(old, ignore_errors=True)
