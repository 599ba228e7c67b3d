"""Options that several commands have together: one argument of the command, a dataclass of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from fourfold.cli import options
from fourfold.engine.config import CACHE_SIZE, EngineOptions


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a checkpoint is opened."""

    device: options.Device = "cpu"
    numerics: options.Numerics = "fast"
    kv: options.Kv = None
    threads: options.Threads = 0
    device_memory: options.DeviceMemory = None
    ram: options.Ram = None
    expert_copy: options.ExpertCopy = None
    expert_counts: options.ExpertCounts = None


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How tokens are chosen; None: as the checkpoint recommends."""

    temperature: options.Temperature = None
    top_p: options.TopP = None
    top_k: options.TopK = None
    min_p: options.MinP = None
    repetition_penalty: options.RepetitionPenalty = None

    def given(self) -> dict[str, Any]:
        """Those that were."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Speeding:
    """What makes answers come sooner and changes none."""

    draft: options.Draft = "none"
    cache_dir: options.CacheDir = None
    cache_size: options.CacheSize = CACHE_SIZE

    def given(self) -> EngineOptions:
        return {"draft": self.draft, "cache_dir": self.cache_dir, "cache_size": self.cache_size}


def grouped(command: Callable[..., int]) -> Callable[..., int]:
    """The command for typer: in the place of each parameter that is a dataclass, the options in it."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if not is_dataclass(hint):
            parameters.append(parameter.replace(annotation=hint))
            continue
        groups[parameter.name] = hint
        own = get_type_hints(hint, include_extras=True)
        parameters += [
            inspect.Parameter(
                one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=own[one.name]
            )
            for one in fields(hint)
        ]

    @functools.wraps(command)
    def run(**values: Any) -> int:
        made = {
            name: group(**{one.name: values.pop(one.name) for one in fields(group)})
            for name, group in groups.items()
        }
        return command(**values, **made)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run
