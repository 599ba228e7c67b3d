"""What a checkpoint's authors recommend for generating with it, from its generation_config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourfold.engine.sampler import Sampling
from fourfold.errors import ConfigError, RequestError

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_READ = {*_SAMPLING, "do_sample", "max_new_tokens", "eos_token_id"}
_WITHOUT_EFFECT = {"bos_token_id", "pad_token_id", "transformers_version", "_from_model_config", "use_cache"}
"""What says nothing about the answers, or what config.json says, too."""


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """sampling; the longest answer, in tokens, where nobody says; ids that end one besides config.json's.

    unused: keys of the file that may change answers and are not heeded here.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop_tokens: tuple[int, ...] = ()
    unused: tuple[str, ...] = ()


def recommended(folder: str | Path) -> Recommended:
    """What `generation_config.json` says; where it or a key is absent, temperature 1 and no filter.

    Raises ConfigError when the file cannot be read or a value is out of range.
    """
    path = Path(folder) / "generation_config.json"
    if not path.exists():
        return Recommended()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}; allowed: an object")
    given = {key: value for key, value in values.items() if value is not None}
    sampling = {key: given[key] for key in _SAMPLING if key in given}
    if given.get("do_sample") is False:
        # What only shapes the draw says nothing then.
        sampling = {"temperature": 0.0} | {k: v for k, v in sampling.items() if k == "repetition_penalty"}
    try:
        chosen = Sampling(**sampling)
    except RequestError as error:
        raise ConfigError(f"{path}: {error}") from None
    longest, ends = given.get("max_new_tokens"), given.get("eos_token_id", [])
    ends = ends if isinstance(ends, list) else [ends]
    return Recommended(
        sampling=chosen,
        max_tokens=None if longest is None else _whole(path, "max_new_tokens", longest, 1),
        stop_tokens=tuple(_whole(path, "eos_token_id", one, 0) for one in ends),
        unused=tuple(sorted(given.keys() - _READ - _WITHOUT_EFFECT)),
    )


def _whole(path: Path, key: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{path}: {key} is {value!r}; allowed: a whole number from {least}")
    return value
