"""What of a JSON schema is refused before it is compiled, because the compiler's own limits do not see it."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from math import prod
from typing import Any

from fourfold.errors import RequestError

_MOST = 10_000
"""A multiple of n is told by an automaton of n states (factors of ten apart), one of several by one of their
product: that takes 0.1 s where it is 10,000, and minutes where it is a million."""


def check_multiples(schema: Any) -> None:
    """RequestError: `multipleOf` asks for too large an automaton somewhere in it."""
    found = [_states(value) for value in _values(schema, "multipleOf")]
    if sum(n for n in found if n > 1) > _MOST or prod({*found}) > _MOST:
        raise RequestError(
            f"multipleOf of the schema are {sorted({*found})[-5:]} (factors of ten apart); allowed: at most "
            f"{_MOST:,} in sum and in product; leave large ones out"
        )


def _values(schema: Any, key: str) -> Iterator[int | float]:
    """Every number under this key."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            value = part.get(key)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value:
                yield value
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _states(number: int | float) -> int:
    """The number without its factors of two and five."""
    _, digits, _ = Decimal(str(number)).as_tuple()
    rest = int("".join(map(str, digits)))
    for factor in (2, 5):
        while rest % factor == 0:
            rest //= factor
    return rest
