"""How often each expert was chosen, in a file that every run adds to: it tells what belongs on a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fourfold.errors import RequestError
from fourfold.tiers.files import appearing, say
from fourfold.tiers.table import ExpertTable

_FORMAT = "fourfold expert counts 1"
_MOST = 1 << 60  # of a count: sums of two stay whole numbers of 64 bits

Counts = npt.NDArray[np.int64]
"""[layers, E]: the tokens that chose each expert."""


class ExpertCounts:
    """before: what `file` says of earlier runs, zeros where there is none yet.  now: of this one.

    A file fits every checkpoint with these layers and so many experts, however its weights are stored.
    RequestError: it is no such file.
    """

    def __init__(self, table: ExpertTable, file: str | Path | None = None) -> None:
        self._layers = table.layers
        self._file = None if file is None else Path(file)
        self.now: Counts = np.zeros((len(table.layers), table.per_layer), dtype=np.int64)
        self.before = self._read()

    def save(self) -> None:
        """Add this run's to what the file says by now; where that fails, stderr says so."""
        if self._file is None or not self.now.any():
            return
        try:
            counts = self._read() + self.now
            rows = dict(zip(self._layers, counts.tolist(), strict=True))
            with appearing(self._file) as stream:
                stream.write(json.dumps({"format": _FORMAT, "layers": rows}).encode())
        except (RequestError, OSError) as error:
            say(f"the experts' uses are not counted in {self._file} ({error})")

    def _read(self) -> Counts:
        if self._file is None:
            return np.zeros_like(self.now)
        try:
            data = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return np.zeros_like(self.now)
        except (OSError, ValueError) as error:
            raise RequestError(
                f"expert counts {self._file} cannot be read ({error}); remove the file"
            ) from error
        if not self._fits(data):
            layers, experts = self.now.shape
            raise RequestError(
                f"{self._file} has no expert counts of this model; allowed: a file that a run with its "
                f"{layers} layers of {experts} experts wrote, or a new one"
            )
        return np.array([data["layers"][name] for name in self._layers], dtype=np.int64)

    def _fits(self, data: Any) -> bool:
        if (
            not isinstance(data, dict)
            or data.get("format") != _FORMAT
            or not isinstance(data.get("layers"), dict)
        ):
            return False
        rows = data["layers"]
        return set(rows) == set(self._layers) and all(
            isinstance(row, list)
            and len(row) == self.now.shape[1]
            and all(type(count) is int and 0 <= count < _MOST for count in row)
            for row in rows.values()
        )
