"""Values out of a JSON object, each checked: a ConfigError names the key, its value and what is allowed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fourfold.errors import ConfigError

_EXACT = 2**53  # beyond it a JSON number is not exact; no number of a model comes near
_LONGEST_VALUE = 200  # characters of a refused value that an error shows


def parse_json(text: str | bytes) -> Any:
    """json.loads, but an object that has a key twice is a ValueError: whichever wins, someone is misled."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(pairs)
        if len(data) != len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ValueError(f"{twice} occurs more than once in an object; keep one")
        return data

    return json.loads(text, object_pairs_hook=no_duplicates)


def require(condition: bool, key: str, value: object, allowed: str) -> None:
    """ConfigError unless `condition` holds."""
    if not condition:
        text = repr(value)
        text = text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
        raise ConfigError(f"{key} is {text}; allowed: {allowed}")


def require_within(bounds: tuple[float, float], key: str, value: float) -> None:
    """ConfigError unless `value` is from the first to the second of `bounds`, both included."""
    least, most = bounds
    allowed = f"{least}" if least == most else f"{least} to {most}"
    require(least <= value <= most, key, value, allowed)


def present(data: Mapping[str, Any], key: str) -> Any:
    """The value of a key that must be there, of whatever type."""
    if key not in data:
        raise ConfigError(f"config.json lacks {key}, which the model needs; add it")
    return data[key]


def integer(data: Mapping[str, Any], key: str) -> int:
    """A whole number that must be there; true and false are none, nor is 1.0."""
    value = present(data, key)
    number = isinstance(value, int) and not isinstance(value, bool)
    require(number and -_EXACT < value < _EXACT, key, value, "an integer")
    return int(value)


def real(data: Mapping[str, Any], key: str) -> float:
    """A finite number that must be there."""
    value = present(data, key)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    require(number and -_EXACT < value < _EXACT, key, value, "a finite number")
    return float(value)


def json_object(value: Any, key: str) -> Mapping[str, Any]:
    """`value`, which `key` names, if it is an object."""
    require(isinstance(value, Mapping), key, value, "an object")
    return value


def one_a_layer(
    data: Mapping[str, Any], key: str, lengths: tuple[int, ...], allowed: tuple[Any, ...]
) -> list[Any]:
    """A list that must be there, of one of `lengths` and with entries out of `allowed`."""
    values = present(data, key)
    require(isinstance(values, (list, tuple)), key, values, "a list")
    found, wanted = len(values), " or ".join(map(str, dict.fromkeys(lengths)))
    if found not in lengths:
        raise ConfigError(f"{key} has {found} entries; allowed: {wanted} (one a layer)")
    for i, value in enumerate(values):
        require(value in allowed and not isinstance(value, bool), f"{key}[{i}]", value, f"one of {allowed}")
    return list(values)


def check_fixed(data: Mapping[str, Any], fixed: Mapping[str, Any], prefix: str = "") -> None:
    """ConfigError if a key of `fixed` is there with another value; `prefix` names the object they are in."""
    for key, allowed in fixed.items():
        if key in data:
            value = data[key]
            # 0 == False in Python, but not in a config.
            same = value == allowed and isinstance(value, bool) == isinstance(allowed, bool)
            require(same, f"{prefix}{key}", value, f"{allowed!r}, the only one this version computes")


def agree(key: str, value: Any, other: str, other_value: Any) -> None:
    """ConfigError unless two spellings of one thing say the same."""
    if value != other_value:
        raise ConfigError(f"{key} is {value!r} but {other} says {other_value!r}; they must agree, keep one")
