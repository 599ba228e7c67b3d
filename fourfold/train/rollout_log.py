"""The log of a round's answers, token by token, so that a run that is killed goes on in the middle of them.

Answers that are begun anew after every interruption would be short ones more often than not: a long one is
interrupted more easily. Here each goes on at its last token. The file is read by people too: a line that ends
an answer has its text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

Finish = Literal["stop", "length"]


class RolloutLog:
    """One round's file.  tokens: number of an answer -> its ids so far.  ended: how those ended that have."""

    def __init__(self, path: Path, owner: str) -> None:
        """owner: tells the weights and the settings that the answers come from; what others began is
        dropped."""
        self.tokens: dict[int, list[int]] = {}
        self.ended: dict[int, Finish] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]  # a line that was cut off never counted
        lines = whole.decode("utf-8").splitlines()
        if lines and json.loads(lines[0]).get("owner") == owner:
            os.truncate(path, len(whole))
            self._read(map(json.loads, lines[1:]))
            self._file = path.open("a", encoding="utf-8")
        else:
            self._file = path.open("w", encoding="utf-8")
            self._write({"owner": owner})

    def _read(self, lines: Iterable[dict[str, Any]]) -> None:
        for line in lines:
            for number, ids in line.get("tokens", {}).items():
                self.tokens.setdefault(int(number), []).extend(ids)
            if "ended" in line:
                self.ended[line["ended"]] = line["by"]

    def add(self, news: Mapping[int, list[int]]) -> None:
        """These answers go on with these tokens."""
        self._write({"tokens": news})
        for number, ids in news.items():
            self.tokens.setdefault(number, []).extend(ids)

    def end(self, number: int, reason: Finish, text: str) -> None:
        """An answer is complete."""
        self._write({"ended": number, "by": reason, "text": text})
        self.ended[number] = reason

    def _write(self, line: Mapping[str, object]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """All answers are on disk."""
        os.fsync(self._file.fileno())
        self._file.close()
