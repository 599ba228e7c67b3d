"""What an answer earns, where a program can tell: the rewards of [grpo]."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Nothing but a full stop may follow: of "0 + 1 = ." the last number is 1, and a student finds that out.
NUMBER = re.compile(r"(?<![\w.])(-?\d[\d,]*(?:\.\d+)?)[\s.!?)]*$")


@dataclass(frozen=True)
class Reward:
    """key: of a prompt's record, which it needs, a text or several.  score: of an answer by one such text."""

    key: str
    score: Callable[[str, str], bool]

    def wanted(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """What the record says.  ValueError: not what this needs."""
        value = record.get(self.key)
        texts = (value,) if isinstance(value, str) else value
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{self.key} is {value!r}; allowed: a text, or a list of texts")
        for text in texts:
            self.score("", text)  # raises where it is no number, or no expression
        return tuple(texts)

    def __call__(self, answer: str, wanted: tuple[str, ...]) -> float:
        """1 where one of `wanted` is met, else 0."""
        return float(any(self.score(answer, text) for text in wanted))


def exact(answer: str, expected: str) -> bool:
    """The answer is this text, spaces around it aside."""
    return answer.strip() == expected.strip()


def numeric(answer: str, expected: str) -> bool:
    """The answer ends with this number.  ValueError: `expected` is no number."""
    value = float(expected.replace(",", ""))
    found = NUMBER.search(answer)
    return found is not None and float(found[1].replace(",", "")) == value


def regex(answer: str, pattern: str) -> bool:
    """The expression is found in the answer.  ValueError: it is none."""
    try:
        return re.search(pattern, answer) is not None
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from error


REWARDS: dict[str, Reward] = {
    "exact": Reward("expected", exact),
    "numeric": Reward("expected", numeric),
    "regex": Reward("pattern", regex),
}
