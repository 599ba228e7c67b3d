"""What a command wrote to disk, in a line and in a document."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourfold.cli import console


@dataclass(frozen=True)
class Written:
    """A checkpoint folder: bytes and number of its weight files, and the seconds that it took."""

    folder: Path
    bytes: int
    files: int
    seconds: float

    @classmethod
    def in_folder(cls, folder: Path, seconds: float) -> Written:
        """Count the weight files of `folder`."""
        sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
        return cls(folder, sum(sizes), len(sizes), seconds)

    def line(self) -> str:
        """146.2 GiB in 32 files, 95.1 s (1.5 GiB/s)."""
        files = f"{self.files} file{'' if self.files == 1 else 's'}"
        rate = console.size(self.bytes / self.seconds) if self.seconds else "-"
        return f"{console.size(self.bytes)} in {files}, {console.number(self.seconds)} s ({rate}/s)"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "folder": str(self.folder),
            "bytes": self.bytes,
            "files": self.files,
            "seconds": round(self.seconds, 3),
        }
