"""Token samples on disk: encoded once, then mapped, so that a corpus needs no memory but its index.

DIR/KEY/  tokens.bin (int32) · learn.bin (bool, what an answer is made of) · samples.npy (end, source and
digest of each sample) · store.json.  Shuffling is a permutation of the index, so a position in the data is
two numbers, and a run that goes on reads no text again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from fourfold.errors import TrainError
from fourfold.train.config import FileSection
from fourfold.train.corpus import Encoder, Sample
from fourfold.train.sources import HUB, read_records

VERSION = 1
INDEX = np.dtype([("end", "<i8"), ("source", "<i4"), ("digest", "<u8")])
Array = np.ndarray


class Stored(Sequence[Sample]):
    """Some samples of a store; each is read when it is asked for."""

    def __init__(self, folder: Path, weights: Array, chosen: Array | None = None) -> None:
        """weights: of each source.  chosen: numbers of the samples; None: all."""
        self.folder, self._weights = folder, weights
        self._rows = np.load(folder / "samples.npy", mmap_mode="r")
        # Copied where it is written to ("c"): torch takes no array that is only for reading.
        self._tokens = np.memmap(folder / "tokens.bin", dtype=np.int32, mode="c")
        self._learn = np.memmap(folder / "learn.bin", dtype=np.bool_, mode="c")
        self.chosen = np.arange(len(self._rows)) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, number: int) -> Sample: ...

    @overload
    def __getitem__(self, number: slice) -> list[Sample]: ...

    def __getitem__(self, number: int | slice) -> Sample | list[Sample]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        at = self.chosen[number]
        part = slice(self._rows["end"][at - 1] if at else 0, self._rows["end"][at])
        weight = float(self._weights[self._rows["source"][at]])
        return Sample(ids=self._tokens[part], answer=self._learn[part], weight=weight)

    @property
    def lengths(self) -> Array:
        """Tokens of each sample, int64 [n]."""
        return np.diff(self._rows["end"], prepend=0)[self.chosen]

    @property
    def weights(self) -> Array:
        """How often an epoch has each sample, f64 [n]."""
        return self._weights[self._rows["source"][self.chosen]]

    def fingerprint(self) -> str:
        """Changes with the samples and their weights."""
        content = json.loads((self.folder / "store.json").read_text(encoding="utf-8"))["content"]
        return hashlib.sha256(content.encode() + self.chosen.tobytes() + self.weights.tobytes()).hexdigest()

    def split(self, share: float, seed: int) -> tuple[Stored, Stored | None]:
        """(training, held out): about `share` of the samples put aside, at least one if share > 0.

        Equal samples stay on one side: a templated fact that occurs twice must not be its own test.
        """
        if share <= 0:
            return self, None
        digests = self._rows["digest"][self.chosen]
        distinct = np.unique(digests)
        order = np.random.default_rng(seed).permutation(len(distinct))
        aside = np.isin(digests, distinct[order[: max(1, round(share * len(distinct)))]])
        kept, held = self.chosen[~aside], self.chosen[aside]
        return Stored(self.folder, self._weights, kept), Stored(
            self.folder, np.ones_like(self._weights), held
        )


def store_samples(encoder: Encoder, sections: tuple[FileSection, ...], folder: Path) -> Stored:
    """The samples of all sources, in their order, encoded into `folder` unless they are there.

    A file that has changed is encoded again; a dataset of the hub is taken to be what it was.  TrainError: a
    record cannot be read, or there is none.
    """
    target = folder / store_key(encoder, sections)
    if not (target / "store.json").is_file():
        partial = folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(encoder, sections, partial)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    return Stored(target, np.asarray([section.weight for section in sections]))


def store_key(encoder: Encoder, sections: tuple[FileSection, ...]) -> str:
    """Names what would be written: sources, as they are on disk, tokenizer and format."""
    parts: list[object] = [VERSION, encoder.tokenizer.vocab_size, encoder.prompt_format]
    for file in [str(encoder.path), *(s.path for s in sections if not s.path.startswith(HUB))]:
        try:
            state = os.stat(file)
        except OSError as error:
            raise TrainError(f"no such data file: {file}") from error
        parts += [file, state.st_size, state.st_mtime_ns]
    parts += [[s.path, s.subset, s.split, s.kinds] for s in sections]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _write(encoder: Encoder, sections: tuple[FileSection, ...], folder: Path) -> None:
    rows: list[tuple[int, int, int]] = []
    content = hashlib.sha256()
    end = 0
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "learn.bin").open("wb") as learnt:
        for source, section in enumerate(sections):
            for record in read_records(section):
                for ids, answer in encoder.samples(record):
                    bits, learn = (
                        np.asarray(ids, dtype=np.int32).tobytes(),
                        np.asarray(answer, dtype=bool).tobytes(),
                    )
                    tokens.write(bits)
                    learnt.write(learn)
                    end += len(ids)
                    digest = hashlib.blake2b(bits, digest_size=8).digest()
                    content.update(bits + learn)
                    rows.append((end, source, int.from_bytes(digest, "little")))
    if not rows:
        raise TrainError(f"no samples in {', '.join(s.path for s in sections)}")
    np.save(folder / "samples.npy", np.asarray(rows, dtype=INDEX))
    about = {"content": content.hexdigest(), "samples": len(rows), "tokens": end}
    (folder / "store.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
