"""Stop strings in a stream of text pieces."""

from __future__ import annotations

from collections.abc import Sequence

from fourfold.errors import RequestError


class StopStrings:
    """Passes text on until one of the stop strings appears, wherever the pieces are cut.

    Text that may still become a stop string is held back; the stop string and what follows it are dropped.
    """

    def __init__(self, stop: str | Sequence[str] = ()) -> None:
        strings = (stop,) if isinstance(stop, str) else tuple(stop)
        for string in strings:
            if not isinstance(string, str) or not string:
                raise RequestError(f"stop holds {string!r}; allowed: strings that are not empty")
        self._strings = strings
        self._held = ""
        self.hit: str | None = None  # the stop string that ended the text

    def push(self, text: str) -> str:
        """What may be shown after `text` has come; nothing more once `hit` is set."""
        if self.hit is not None:
            return ""
        held = self._held + text
        hits = [string for string in self._strings if string in held]
        # The first to be complete, so that the cuts between pieces make no difference; then the longest.
        found = [(held.find(string) + len(string), -len(string), string) for string in hits]
        if found:
            end, _, self.hit = min(found)
            self._held = ""
            return held[: end - len(self.hit)]
        keep = max((_overlap(held, string) for string in self._strings), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """The text that was held back and did not become a stop string."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, string: str) -> int:
    """Length of the longest proper prefix of `string` that `text` ends with."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
