"""Writes a checkpoint folder in the official layout: shards, index, config.json, tokenizer files.

The folder appears whole or not at all: it is written beside its destination, checked like any checkpoint
that we would load, and renamed.  A long conversion is a `job`: when it is interrupted, what it has written
stays, and the same job goes on after the last whole shard.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.config_keys import QUANTIZATION
from fourfold.config_quantization import integer_quantization
from fourfold.config_values import parse_json
from fourfold.errors import CheckpointError
from fourfold.weights.layout import INDEX, INTEGERS, SINGLE, Entry, check_layout, check_tensors
from fourfold.weights.progress import byte_progress
from fourfold.weights.recipes import left_out
from fourfold.weights.shards import HEADER_DTYPES, Pending, Stored, read_header, write_file

SHARD_SIZE = 5_000_000_000
"""Bytes of tensors a shard holds at most, unless one tensor is larger."""
SIDE_FILES = ("generation_config.json", "tokenizer*.json", "special_tokens_map.json", "LICENSE*")
"""Files that go along with the weights, as glob patterns."""
_UNFINISHED, _NOTES = ".part", ".notes.json"
"""Endings of what an interrupted job leaves: a part of a shard, and the notes of a whole one."""
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
    write_folder(
        Path(dst), config, pending, sides, shard_size=shard_size, progress=progress, overwrite=overwrite
    )
    return Path(dst)


def write_folder(
    dst: Path,
    config: ModelConfig,
    pending: Sequence[Pending],
    sides: Sequence[Path] = (),
    *,
    shard_size: int,
    progress: bool,
    overwrite: bool,
    job: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Write `pending`, in the order of the layers, and `sides` as the checkpoint folder `dst`; its notes.

    config.json is `config` with expert_dtype and quantization_config as the tensors say.  overwrite: a
    folder that holds nothing but what this writes may be replaced.  job: everything that decides what is
    written, for JSON; an interrupted one goes on.  Raises CheckpointError, before the first byte is written
    for all that names, shapes and types tell.
    """
    if shard_size < 1:
        raise CheckpointError(f"shard_size is {shard_size}; allowed: 1 byte or more")
    total = sum(tensor.nbytes for tensor in pending)
    planned = {t.name: Stored(t.name, dst, t.dtype, t.shape, 0, t.nbytes) for t in pending}
    entries = check_tensors(dst, planned, dataclasses.replace(config, expert_dtype=None))
    data = _config_json(config, entries)
    shards = list(_shards(pending, shard_size))
    notes: list[dict[str, Any]] = []
    with (
        _appearing(dst, total, overwrite, job) as folder,
        byte_progress("writing", total, show=progress) as advance,
    ):
        _write_json(folder / "config.json", data)
        for file in sides:
            shutil.copyfile(file, folder / file.name)
        weight_map: dict[str, str] = {}
        for i, shard in enumerate(shards, start=1):
            name = SINGLE if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
            notes += _write_shard(folder / name, shard, advance)
            weight_map |= dict.fromkeys((tensor.name for tensor in shard), name)
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            _write_json(folder / INDEX, index)
        check_layout(folder, ModelConfig.from_file(folder))
        for file in folder.glob(f"*{_NOTES}"):
            file.unlink()
    return notes


def _write_shard(
    file: Path, shard: Sequence[Pending], advance: Callable[[int], object]
) -> list[dict[str, Any]]:
    """Write a shard, or keep the one that an interrupted job has left; returns its notes."""
    beside, unfinished = file.with_name(file.name + _NOTES), file.with_name(file.name + _UNFINISHED)
    if beside.exists() and _is_whole(file, shard):
        advance(sum(tensor.nbytes for tensor in shard))
        kept: list[dict[str, Any]] = parse_json(beside.read_text(encoding="utf-8"))
        return kept
    write_file(unfinished, shard, advance)
    notes = [tensor.note() for tensor in shard if tensor.note is not None]
    _write_json(beside, notes)
    unfinished.rename(file)  # last: a shard of this name is complete, and so are its notes
    return notes


def _is_whole(file: Path, shard: Sequence[Pending]) -> bool:
    try:
        found = {(tensor.name, tensor.dtype, tensor.shape) for tensor in read_header(file)}
    except CheckpointError:
        return False
    return found == {(tensor.name, tensor.dtype, tensor.shape) for tensor in shard}


def side_files(folder: Path) -> list[Path]:
    """Tokenizer, generation settings and licence of a checkpoint folder: what it has of SIDE_FILES."""
    return sorted(file for pattern in SIDE_FILES for file in folder.glob(pattern) if file.is_file())


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _shards(pending: Sequence[Pending], shard_size: int) -> Iterator[list[Pending]]:
    """Parts of at most shard_size bytes; what belongs to one module stays together."""
    shard: list[Pending] = []
    size = 0
    for _, module in itertools.groupby(pending, lambda tensor: tensor.name.rpartition(".")[0]):
        tensors = list(module)
        nbytes = sum(tensor.nbytes for tensor in tensors)
        if shard and size + nbytes > shard_size:
            yield shard
            shard, size = [], 0
        shard += tensors
        size += nbytes
    yield shard


def _config_json(config: ModelConfig, entries: Mapping[str, Entry]) -> dict[str, Any]:
    formats = {name: entry.format for name, entry in entries.items() if name.endswith(".weight")}
    experts = {formats[name] for name, entry in entries.items() if entry.spec.kind == "expert"}
    # Layers that differ are for the reader to find in the headers; config.json has one word for all.
    expert_dtype = experts.pop() if len(experts) == 1 else None
    data = dataclasses.replace(config, expert_dtype=expert_dtype).to_json()
    data.pop("quantization_config", None)
    integers = {name for name, fmt in formats.items() if fmt in INTEGERS}
    if integers:
        spec = {name: entry.spec for name, entry in entries.items()}
        bits = 4 if expert_dtype == "int4" else 8
        data["quantization_config"] = integer_quantization(bits, list(left_out(spec, integers)))
    elif not set(formats.values()) <= {"bf16", "f32"}:
        data["quantization_config"] = dict(QUANTIZATION)
    return data


def _write_json(file: Path, data: dict[str, Any] | list[dict[str, Any]]) -> None:
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _appearing(dst: Path, total: int, overwrite: bool, job: Mapping[str, Any] | None) -> Iterator[Path]:
    """A folder to write into, which becomes `dst` if the body succeeds and is removed if not.

    That of a job stays once it has a whole shard, and serves the same job again.
    """
    try:
        dst = dst.resolve()  # a link stays one, and "." has a name
        _check_replaceable(dst, overwrite)
        dst.parent.mkdir(parents=True, exist_ok=True)
        # Not hidden: a process that is killed leaves it behind, and it may be large.
        temporary = dst.parent / f"{dst.name}.partial-{os.getpid() if job is None else _digest(job)}"
        for file in temporary.glob(f"*{_UNFINISHED}"):
            file.unlink()
        room = shutil.disk_usage(dst.parent).free + sum(f.stat().st_size for f in temporary.glob("*"))
        if room < total:
            raise CheckpointError(f"{dst}: needs {total / 1e9:.1f} GB, the disk has {room / 1e9:.1f} GB free")
        temporary.mkdir(exist_ok=job is not None)
        try:
            yield temporary
            _check_replaceable(dst, overwrite)  # again: writing may have taken an hour
            _move(temporary, dst)
        except BaseException:
            if job is None or not any(temporary.glob("*.safetensors")):
                shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise CheckpointError(f"{dst}: cannot be written ({error})") from error


def _digest(job: Mapping[str, Any]) -> str:
    """Sixteen hex digits that differ for jobs that differ."""
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]


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
