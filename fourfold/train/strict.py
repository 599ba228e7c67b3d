"""Strict TOML: a file into frozen dataclasses, every key and type checked.

A misspelt `wieght_decay` must not train a model, so it is refused by name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from fourfold.errors import ConfigError

SectionT = TypeVar("SectionT")


def read_toml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """CONFIG.toml with `section.key=value` overrides (values in TOML; a bare word is a string).

    Raises ConfigError.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for override in overrides:
        _override(values, override)
    return values


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    names = key.strip().split(".")
    if not separator or not all(names):
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    for name in names[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {name} is not a section")
    values[names[-1]] = value


def build(cls: type[SectionT], values: Mapping[str, Any], where: str) -> SectionT:
    """An instance of the dataclass `cls` from a table, every key checked."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"[{where}] must be a table, not {values!r}")
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - known.keys()):
        place = f"[{where}]" if where else "the file"
        raise ConfigError(
            f"{place} has keys this version does not know: {', '.join(unknown)}; known: {', '.join(known)}"
        )
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in values]:
        raise ConfigError(f"{f'[{where}]' if where else 'the training config'} lacks: {', '.join(missing)}")
    hints = get_type_hints(cls)
    built = {k: _convert(hints[k], v, f"{where}.{k}" if where else k) for k, v in values.items()}
    return cls(**built)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`; only int -> float and list -> tuple are silent."""
    if is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, not {value!r}")
        return tuple(_convert(get_args(hint)[0], item, where) for item in value)
    assert not isinstance(hint, UnionType)
    hint = str if get_origin(hint) is Literal else hint  # CHOICES has what is allowed
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} must be {hint.__name__}, not {value!r}")
    return value
