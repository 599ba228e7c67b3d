"""How much an engine may take, and how it divides that: the memory account."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypedDict, Unpack, get_args

import torch

from fourfold.config import ModelConfig
from fourfold.engine.disk import DiskCache
from fourfold.engine.drafts import MOST
from fourfold.engine.limits import Limits
from fourfold.engine.timeline import Timeline
from fourfold.engine.trace_file import TraceFile
from fourfold.errors import ConfigError
from fourfold.model.paged_shape import Shape
from fourfold.model.transformer import Transformer
from fourfold.tiers.memory import free_ram, parse_ram, written

Draft = Literal["mtp", "ngram", "none"]
DRAFTS: tuple[Draft, ...] = get_args(Draft)

CACHE_SIZE = "16GiB"
"""Of a folder, unless told otherwise: V4-Flash has there, in bf16, a million tokens and 500 states."""
_SNAPSHOTS = 4
"""Of one request: at the end of the prompt and of the answer, and where the last message began."""
_SHARE = 4
"""Unless told otherwise the cache takes a 4th of what is free at most, and saved states a 4th of that."""


class EngineOptions(TypedDict, total=False):
    """Keyword arguments of EngineConfig that make sense for a single conversation."""

    cache_dir: str | Path | None
    cache_size: int | str
    draft: Draft


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Limits of one engine.  ConfigError names a value that is not allowed.

    max_running: requests that are computed at once; others wait.
    step_tokens: tokens of one forward pass, prompts and answers together; at least twice max_running.
    memory: for the cache, bytes or "2GiB": states of running requests and of snapshots, blocks, and the call
    that runs.  None: what max_running requests of full length need, at most a 4th of what is free there.
    snapshots: states kept for reuse; 0: no prefix is reused.  snapshot_every: tokens between two of them,
    besides those at the ends of prompts and answers and where prompts have branched.
    saved_memory: on the host, for preempted requests and for what comes from disk; 0: they are computed
    again.  None: a 4th of `memory`.
    cache_dir: a folder that keeps states and blocks beyond this process, and that others may share.
    cache_size: how much of it may be used, by all models.
    draft: who guesses tokens that one step then verifies, as long as that pays: "ngram", what followed when
    the text last ended so; "mtp", that and the model's MTP block; "none".  The answers are the same bits.
    trace_file: what happens to each request is written there, as `fourfold.engine.timeline` describes.
    """

    max_running: int = 32
    step_tokens: int = 512
    memory: int | str | None = None
    snapshots: int = 64
    snapshot_every: int = 4096
    saved_memory: int | str | None = None
    cache_dir: str | Path | None = None
    cache_size: int | str = CACHE_SIZE
    draft: Draft = "none"
    trace_file: str | Path | None = None

    def __post_init__(self) -> None:
        if self.draft not in DRAFTS:
            raise ConfigError(f"draft is {self.draft!r}; allowed: {', '.join(DRAFTS)}")
        least = {"max_running": 1, "step_tokens": 2 * self.max_running, "snapshots": 0, "snapshot_every": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ConfigError(f"{name} is {value!r}; allowed: a whole number from {low}")

    @classmethod
    def for_one(
        cls,
        shape: Shape,
        prompt: int,
        longest: int,
        *,
        drafting: Shape | None = None,
        **options: Unpack[EngineOptions],
    ) -> EngineConfig:
        """Just enough for one request of up to `longest` tokens, of which nothing is kept but on disk.

        drafting: what `draft_shape` gives for the model and `draft`.
        """
        least = 2 if options.get("draft", "none") == "none" else 1 + MOST
        one = cls(
            max_running=1,
            snapshots=0 if options.get("cache_dir") is None else _SNAPSHOTS,
            step_tokens=max(least, min(prompt, cls.step_tokens)),
            **options,
        )
        blocks = -(-longest // shape.block_tokens) * shape.block_bytes
        memory = one._fixed(shape, drafting) + max(1, blocks)
        return replace(one, memory=memory, saved_memory=shape.slot_bytes + blocks)

    def limits(
        self, shape: Shape, model: ModelConfig, free: int | None, *, drafting: Shape | None = None
    ) -> Limits:
        """What a scheduler may give out for a model that keeps `shape` of a sequence.

        drafting: what its MTP block keeps, where that drafts.
        free: memory that is there, in bytes; None where that is not known.  ConfigError: the memory does not
        hold the fixed states and one block.  RequestError: it is no size.
        """
        fixed = self._fixed(shape, drafting)
        longest = -(-model.max_position_embeddings // shape.block_tokens)
        if self.memory is None:
            memory = fixed + self.max_running * longest * shape.block_bytes
            memory = memory if free is None else min(memory, max(free // _SHARE, fixed + shape.block_bytes))
        else:
            memory = parse_ram(self.memory, "memory")
        # A model without compressed layers needs no memory for blocks, only their numbers.
        blocks = (memory - fixed) // shape.block_bytes if shape.block_bytes else self.max_running * longest
        if blocks < 1:
            raise ConfigError(
                f"memory is {written(memory)}; allowed: {written(fixed + shape.block_bytes)} and more: "
                f"{written(fixed)} for the states of {self.max_running} running requests (max_running) and "
                f"{self.snapshots} snapshots and for a step of {self.step_tokens} tokens (step_tokens)"
            )
        return Limits(
            running=self.max_running,
            step_tokens=self.step_tokens,
            blocks=blocks,
            block_tokens=shape.block_tokens,
            snapshots=self.snapshots,
            snapshot_every=self.snapshot_every,
            saved_bytes=self._saved(memory),
            slot_bytes=shape.slot_bytes,
            block_bytes=shape.block_bytes,
        )

    def disk_cache(self, model: Transformer) -> DiskCache | None:
        """What is on disk of this model's; None without a folder.  ConfigError, RequestError: see there."""
        if self.cache_dir is None:
            return None
        return DiskCache(model, Path(self.cache_dir), parse_ram(self.cache_size, "cache_size"))

    def timeline(self) -> Timeline | None:
        """What writes the trace; None without a file for it.  ConfigError: it cannot be written to."""
        return None if self.trace_file is None else Timeline(TraceFile(Path(self.trace_file)))

    def _saved(self, memory: int) -> int:
        if self.saved_memory is None:
            return memory // _SHARE
        return 0 if self.saved_memory == 0 else parse_ram(self.saved_memory, "saved_memory")

    def _fixed(self, shape: Shape, drafting: Shape | None = None) -> int:
        """Bytes of all that is no block."""
        # One slot more is the cache's own.
        states = (self.max_running + self.snapshots + 1) * shape.slot_bytes
        if drafting is not None:
            states += (self.max_running + 1) * drafting.slot_bytes + self.step_tokens * drafting.staged_bytes
        return states + self.step_tokens * shape.staged_bytes


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free where a model lies; None where that is not known."""
    if device.type == "cpu":
        return free_ram()
    info = getattr(torch.get_device_module(device), "mem_get_info", None)
    return None if info is None else int(info(device)[0])


def draft_shape(model: Transformer, draft: Draft) -> Shape | None:
    """What the MTP block keeps of a request, if it drafts.  ConfigError: it should, and there is none."""
    if draft != "mtp":
        return None
    if not model.config.num_nextn_predict_layers:
        raise ConfigError(
            "draft is 'mtp', but this checkpoint has no MTP block (num_nextn_predict_layers is 0); "
            "allowed: 'ngram' and 'none'"
        )
    return model.draft_shape(MOST)
