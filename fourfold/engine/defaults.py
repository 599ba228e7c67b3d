"""The sampling that a checkpoint's authors recommend, from its generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path

from fourfold.engine.sampler import Sampling
from fourfold.errors import ConfigError, RequestError

_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def recommended(folder: str | Path) -> Sampling:
    """Sampling from `generation_config.json`; where it or a key is absent, temperature 1 and no filter.

    Raises ConfigError when the file cannot be read or a value is out of range.
    """
    path = Path(folder) / "generation_config.json"
    if not path.exists():
        return Sampling()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}; allowed: an object")
    if values.get("do_sample") is False:
        return Sampling(temperature=0.0)
    try:
        return Sampling(**{key: values[key] for key in _KEYS if values.get(key) is not None})
    except RequestError as error:
        raise ConfigError(f"{path}: {error}") from None
