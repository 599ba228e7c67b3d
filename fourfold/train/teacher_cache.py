"""A teacher's hidden states on disk, so that it is asked once about each sample and need not stay in memory.

DIR/states.bin holds them as bfloat16, DIR/index.jsonl where each sample's are, DIR/head.safetensors the head.
An index line is written after its states are on disk: a run that is killed loses the sample at hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourfold.errors import TrainError
from fourfold.model.layout import packed_rows
from fourfold.train.teacher import Teacher

BYTES = 2
BATCH_TOKENS = 4096
"""Tokens that the teacher is asked about at once."""


class CachedTeacher:
    """The hidden states of samples that a teacher has seen."""

    def __init__(self, folder: Path, name: str, open_teacher: Callable[[], Teacher]) -> None:
        """name: of the teacher; a folder made by another is refused.  open_teacher: for when it is needed."""
        self.folder = folder
        self._open = open_teacher
        folder.mkdir(parents=True, exist_ok=True)
        self._check_owner(name)
        if not (folder / "head.safetensors").exists():
            self._teacher: Teacher | None = open_teacher()
            save_file({"head": self._teacher.head.to(torch.bfloat16).contiguous()}, folder / "partial")
            os.replace(folder / "partial", folder / "head.safetensors")
        else:
            self._teacher = None
        self.head = load_file(folder / "head.safetensors")["head"]
        self.width = self.head.shape[1]
        self._at = self._read_index()

    def _check_owner(self, name: str) -> None:
        owner = self.folder / "teacher.json"
        if not owner.exists():
            owner.write_text(json.dumps({"teacher": name}) + "\n", encoding="utf-8")
        found = json.loads(owner.read_text(encoding="utf-8")).get("teacher")
        if found != name:
            raise TrainError(
                f"{self.folder} holds hidden states of {found!r}, not of {name!r}; give each "
                "teacher a folder of its own"
            )

    def _read_index(self) -> dict[str, tuple[int, int]]:
        """Sample -> (first token, tokens).  A last line that was cut off is no entry."""
        path = self.folder / "index.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = {}
        for line in lines:
            try:
                key, start, count = json.loads(line)
            except ValueError:
                continue
            found[key] = (start, count)
        return found

    def missing(self, samples: Iterable[Tensor]) -> list[Tensor]:
        """Those of `samples` (ids int64 [n]) whose states are not here, each once."""
        wanted = {_key(sample): sample for sample in samples}
        return [sample for key, sample in wanted.items() if key not in self._at]

    def size_of(self, samples: Iterable[Tensor]) -> int:
        """Bytes that the states of `samples` take."""
        return sum(map(len, samples)) * self.width * BYTES

    def fill(self, samples: list[Tensor], device: torch.device, progress: Callable[[int], None]) -> None:
        """Ask the teacher about `samples`, which `missing` gave, and keep what it says.

        progress: called with the number of tokens done.  TrainError: the disk has no room.
        """
        needed, free = self.size_of(samples), shutil.disk_usage(self.folder).free
        if needed > free:
            raise TrainError(
                f"the teacher's hidden states need {needed / 1e9:.2f} GB, {self.folder} has {free / 1e9:.2f} "
                "GB free; "
                "make room, or give distil.cache or run.dir another place"
            )
        if samples and self._teacher is None:
            self._teacher = self._open()
        self._cut_off_unfinished()
        done = 0
        batch: list[Tensor] = []
        for sample in sorted(samples, key=len):
            if batch and (len(batch) + 1) * len(sample) > BATCH_TOKENS:
                done += self._add(batch, device)
                progress(done)
                batch = []
            batch.append(sample)
        if batch:
            progress(done + self._add(batch, device))
        self.let_go()

    def let_go(self) -> None:
        """Leave the teacher's memory to others."""
        self._teacher = None

    def renew(self, samples: Iterable[Tensor], device: torch.device) -> None:
        """Keep the states of `samples`, and of no others.  TrainError as `fill`."""
        self._at = {}
        self.fill(self.missing(samples), device, lambda done: None)

    def _cut_off_unfinished(self) -> None:
        """What a run that was killed left half written: states that no line names, and half a line."""
        states, index = self.folder / "states.bin", self.folder / "index.jsonl"
        states.touch()
        os.truncate(states, max((a + n for a, n in self._at.values()), default=0) * self.width * BYTES)
        partial = index.with_suffix(".partial")
        partial.write_text("".join(_line(key, place) for key, place in self._at.items()), encoding="utf-8")
        os.replace(partial, index)

    def _add(self, samples: list[Tensor], device: torch.device) -> int:
        assert self._teacher is not None
        length = len(samples[-1])
        ids = torch.stack([torch.nn.functional.pad(sample, (0, length - len(sample))) for sample in samples])
        segments = torch.stack([(torch.arange(length) >= len(sample)).long() for sample in samples])
        states = self._teacher.hidden(ids.to(device), segments.to(device)).to("cpu", torch.bfloat16)
        added = {}
        with (self.folder / "states.bin").open("ab") as file:
            for sample, own in zip(samples, states, strict=True):
                start = file.tell() // (self.width * BYTES)
                file.write(own[: len(sample)].contiguous().view(torch.uint8).numpy().tobytes())
                added[_key(sample)] = (start, len(sample))
            file.flush()
            os.fsync(file.fileno())
        with (self.folder / "index.jsonl").open("a", encoding="utf-8") as index:
            index.writelines(_line(key, place) for key, place in added.items())
        self._at |= added
        return sum(map(len, samples))

    def hidden(self, ids: Tensor, segments: Tensor) -> Tensor:
        """[B, T, D] bfloat16 as the protocol; zeros where a row ends in padding.  TrainError: a sample is not
        here."""
        states = self._states()
        result = torch.zeros(*ids.shape, self.width, dtype=torch.bfloat16)
        for row, parts in enumerate(packed_rows(segments.cpu())):
            begin = 0
            for part in parts:
                end = begin + part.new
                if place := self._at.get(_key(ids[row, begin:end].cpu())):
                    result[row, begin:end] = states[place[0] : place[0] + place[1]]
                elif end < ids.shape[1]:
                    raise TrainError(f"{self.folder} lacks a sample of {part.new} tokens; remove the folder")
                begin = end
        return result.to(ids.device)

    def _states(self) -> Tensor:
        """All rows [N, D], mapped and not read: what is used often stays in the page cache."""
        count = max((start + length for start, length in self._at.values()), default=0)
        path = str(self.folder / "states.bin")
        flat = torch.from_file(path, shared=False, size=count * self.width, dtype=torch.bfloat16)
        return flat.view(count, self.width)


def _line(key: str, place: tuple[int, int]) -> str:
    return json.dumps([key, *place]) + "\n"


def fingerprint(folder: Path) -> str:
    """Tells a checkpoint from another: its files' names, sizes, and how each begins."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")]):
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(1 << 20))
    return digest.hexdigest()[:32]


def _key(sample: Tensor) -> str:
    return hashlib.sha256(sample.to(torch.int32).numpy().tobytes()).hexdigest()[:32]
