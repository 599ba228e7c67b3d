"""What an operator chooses: names, limits, keys, times."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fourfold.engine.defaults import Recommended
from fourfold.engine.request import Request
from fourfold.errors import ConfigError
from fourfold.protocol import PromptFormat

CacheScope = Literal["key", "global"]


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How one model is served.  ConfigError names a value that is not allowed.

    name: of the model; aliases: other names that it answers to; adapters: of the engine, which requests name
    behind the model's name and a colon.  format: of prompts.  thinking: whether a
    request that does not say wants reasoning.  recommended: where a request says nothing.
    keys: what clients must send, if there are any; cache_scope: whether those of one key find prefixes that
    another has computed, which one could notice by the time that they take.
    body_bytes, messages, choices, answer_tokens: the most of one request (answer_tokens None: what fits);
    waiting: requests that may wait for the engine before new ones are refused.
    key_running: requests of one key at once; key_rate: requests of one key a minute; 0: any number.
    keep_alive: seconds between comments while nothing is there to stream; slow_reader: seconds that a client
    may leave its end of a stream full; drain: seconds that running requests have after SIGTERM.
    hosts: names that requests may call the server by, or any; they keep out web pages whose own name leads
    here.  origins: of web pages that browsers may ask from.  log_prompts: they and answers go into the log.
    trace_file: the beginning and end of each request go there.
    """

    name: str
    aliases: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    format: PromptFormat = "preview"
    thinking: bool = False
    recommended: Recommended = field(default_factory=Recommended)
    keys: tuple[str, ...] = ()
    cache_scope: CacheScope = "key"
    body_bytes: int = 16 << 20
    messages: int = 4096
    choices: int = 16
    answer_tokens: int | None = None
    waiting: int = 256
    key_running: int = 0
    key_rate: int = 0
    keep_alive: float = 10.0
    slow_reader: float = 60.0
    drain: float = 30.0
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    log_prompts: bool = False
    trace_file: Path | None = None

    def __post_init__(self) -> None:
        least = {
            "body_bytes": 1,
            "messages": 1,
            "choices": 1,
            "waiting": 0,
            "key_running": 0,
            "key_rate": 0,
            "keep_alive": 0.01,
            "slow_reader": 0.01,
            "drain": 0,
        }
        for name, low in least.items():
            if (value := getattr(self, name)) < low:
                raise ConfigError(f"{name} is {value!r}; allowed: a number from {low}")
        if self.answer_tokens is not None and self.answer_tokens < 1:
            raise ConfigError(f"answer_tokens is {self.answer_tokens!r}; allowed: a whole number from 1")
        if any(len(key) < 8 or not key.isascii() or key != key.strip() for key in self.keys):
            raise ConfigError(
                "an API key is too short or no plain text; allowed: 8 ASCII characters and more"
            )

    def bounded(self, request: Request) -> Request:
        """The request with the ends that the checkpoint recommends, and no longer than is allowed."""
        longest = self.recommended.max_tokens if request.max_tokens is None else request.max_tokens
        if self.answer_tokens is not None:
            longest = self.answer_tokens if longest is None else min(longest, self.answer_tokens)
        ends = () if request.ignore_eos else self.recommended.stop_tokens
        return replace(request, max_tokens=longest, stop_tokens=(*request.stop_tokens, *ends))

    @property
    def names(self) -> tuple[str, ...]:
        """All that requests may call a model."""
        own = (self.name, *self.aliases)
        return (*own, *(f"{name}:{adapter}" for name in own for adapter in self.adapters))

    def adapter_of(self, name: str) -> str:
        """Which adapter one of `names` stands for; "" for none."""
        own = {f"{base}:{one}": one for base in (self.name, *self.aliases) for one in self.adapters}
        return own.get(name, "")
