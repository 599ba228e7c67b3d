"""An adapter added to its base: a checkpoint in the official layout that needs neither.

Tensors that the adapter does not touch keep every byte.  Those that it does are stored in their old format,
which rounds again, or as bf16.  A coarse format may round a small change away: how much is reported.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError
from fourfold.weights.adapter import StoredAdapter, base_fingerprint, read_adapter
from fourfold.weights.export import kept, read_values, stored_as, written_as
from fourfold.weights.formats import Format
from fourfold.weights.hub import resolve
from fourfold.weights.layout import Entry, check_layout
from fourfold.weights.load import check_redundant
from fourfold.weights.shards import Pending, Reader
from fourfold.weights.writer import SHARD_SIZE, side_files, write_folder

Changed = Literal["keep", "bf16"]


@dataclass(frozen=True)
class MergedTensor:
    """A weight that an adapter changed, W to W' = W + D, stored as Ŵ.  Frobenius norms.

    change: |D| / |W|.  error: |Ŵ - W'| / |W'|.  lost: |Ŵ - W'| / |D|, 0 where the change is stored as it is,
    1 and more where rounding is as large as the change itself.
    """

    name: str
    format: Format
    change: float
    error: float
    lost: float

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; keys are the fields."""
        return asdict(self)


def merge(
    base: Path | str,
    adapter: Path,
    dst: Path,
    *,
    changed: str = "keep",
    shard_size: int = SHARD_SIZE,
    progress: bool = True,
    overwrite: bool = False,
) -> list[MergedTensor]:
    """Write base + adapter as the checkpoint folder `dst`, tensor by tensor.

    base: folder or repository id.  changed: "keep", the format that each changed weight had, or "bf16".
    shard_size in bytes.  Raises CheckpointError, also for an adapter that is not this base's.
    """
    if changed not in get_args(Changed):
        raise CheckpointError(f"changed is {changed!r}; allowed: {', '.join(get_args(Changed))}")
    folder = resolve(base)
    config = ModelConfig.from_file(folder)
    entries = check_layout(folder, config)
    check_redundant(entries.values())
    low = read_adapter(adapter, config, base_fingerprint(folder))
    with Reader() as reader:
        pending: list[Pending] = []
        for entry in entries.values():
            if low.touches(entry.name):
                target: Format = "bf16" if changed == "bf16" else entry.format
                pending += written_as(entry, target, partial(_merged, reader, entry, low, target))
            else:
                pending += kept(reader, entry)
        notes = write_folder(
            dst,
            config,
            pending,
            side_files(folder),
            shard_size=shard_size,
            progress=progress,
            overwrite=overwrite,
        )
    return [MergedTensor(**note) for note in notes]


def _merged(
    reader: Reader, entry: Entry, low: StoredAdapter, target: Format
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    before, change = read_values(reader, entry), low.change(entry.name)
    after = before + change
    parts, error = stored_as(after, entry, target)
    own, whole, size = (float(x.norm()) for x in (change, after, before))
    lost = error.error * whole / own if own else 0.0
    ratio = own / size if size else 0.0
    return parts, MergedTensor(entry.name, target, ratio, error.error, lost).to_json()
