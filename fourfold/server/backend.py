"""What the server asks of an engine, so that one in another process can take its place."""

from __future__ import annotations

import time
import traceback
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from fourfold.config import ModelConfig
from fourfold.engine.answer import Answer, Chunk
from fourfold.engine.engine import EngineStats
from fourfold.engine.request import Request
from fourfold.errors import FourfoldError
from fourfold.server.access import Quota
from fourfold.server.calls import Call, Log
from fourfold.server.errors import ApiError, api_error
from fourfold.server.metrics import Metrics
from fourfold.server.settings import ServerConfig
from fourfold.tokenizer import Tokenizer


class Backend(Protocol):
    """`fourfold.Engine`, as far as the server knows it."""

    tokenizer: Tokenizer

    def submit(self, request: Request) -> Answer: ...

    def async_chunks(self, answer: Answer) -> AsyncGenerator[Chunk]: ...

    def cancel(self, answer: Answer) -> None: ...

    def stats(self) -> EngineStats: ...


@dataclass
class Server:
    """One model that is served.  draining: running requests end, new ones are refused."""

    engine: Backend
    model: ModelConfig
    config: ServerConfig
    log: Log = field(default_factory=Log)
    started: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.config.name, self.engine.stats)
        self.quota = Quota(self.config.key_running, self.config.key_rate)

    def failed(self, call: Call, error: Exception) -> ApiError:
        """What the client of a call is told of what ended it; the log gets what holds none of its texts."""
        told = api_error(error)
        quotes = told.status in (400, 404, 422)
        call.error = told.code or "invalid_request_error" if quotes else told.message
        if self.config.log_prompts:
            call.error = told.message
        if not isinstance(error, FourfoldError):
            frames = traceback.extract_tb(error.__traceback__)
            where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
            self.log.write("failure", id=call.id, type=type(error).__name__, where=where)
        return told
