"""What a server and its engine's process tell each other: typed messages, each a frame of JSON.

A frame is its length, four bytes with the highest first, and a JSON array: the message's name and its fields
in their order.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from fourfold import errors
from fourfold.engine.answer import Chunk
from fourfold.engine.config import EngineConfig
from fourfold.engine.engine import EngineStats
from fourfold.engine.inspection import LayerChoice
from fourfold.engine.limits import Counters
from fourfold.engine.logprobs import TokenLogprob
from fourfold.errors import FourfoldError
from fourfold.model.experts import TierStats

MOST_BYTES = 1 << 27
"""Of a frame: a prompt of sixteen million tokens."""

_LENGTH = struct.Struct(">I")


class Fault(NamedTuple):
    """An exception of the engine's process.  where: its frames, for those who wrote it."""

    name: str
    text: str
    where: list[str]


# To the engine's process.


class Launch(NamedTuple):
    """The first message: what to load and how to run it.

    model: a folder.  loading: fields of `fourfold.cli.groups.Loading`.  engine: EngineConfig's.
    adapters: folders, by name.
    """

    model: str
    loading: dict[str, Any]
    engine: dict[str, Any]
    adapters: dict[str, str]


class Submit(NamedTuple):
    """A request under a number that no other has had.  request: as `Request.to_json` gives it.

    said: the tokens of each choice that were told before; they are not told again.
    """

    number: int
    request: dict[str, Any]
    said: list[list[int]]


class Cancel(NamedTuple):
    """Nobody wants this answer any more, or this choice of it alone."""

    number: int
    choice: int | None = None


# From it.


class Ready(NamedTuple):
    """It has loaded the model and takes requests."""


class Failed(NamedTuple):
    """It could not start, and ends."""

    fault: list[Any]


class Taken(NamedTuple):
    """A request runs or waits now; fault: it is refused."""

    number: int
    fault: list[Any] | None


class News(NamedTuple):
    """What a step has brought.

    taken: how many requests had been submitted by then.  begun: [number, cached tokens, seconds of prefill].
    scored: [number, log probabilities of the prompt's next tokens].  chunks: as `chunk_row` gives them.
    layers: [number, `layer_rows` of what they chose].
    ended: [number, fault or null], behind all its chunks.  stats: as `stats_row` gives them.
    """

    taken: int
    begun: list[list[Any]]
    scored: list[list[Any]]
    chunks: list[list[Any]]
    layers: list[list[Any]]
    ended: list[list[Any]]
    stats: list[Any]


Message = Launch | Submit | Cancel | Ready | Failed | Taken | News
_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Launch, Submit, Cancel, Ready, Failed, Taken, News)
}


class WireError(Exception):
    """The other end has sent what is no message: a mistake of ours, or memory that is no longer itself."""


def frame(message: Message) -> bytes:
    """A message as it is sent.  WireError: it is too long."""
    text = json.dumps([type(message).__name__, *message], ensure_ascii=False, separators=(",", ":"))
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > MOST_BYTES:
        raise WireError(f"a message has {len(data):,} bytes; allowed: {MOST_BYTES:,}")
    return _LENGTH.pack(len(data)) + data


class Frames:
    """Bytes as they come -> messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def push(self, data: bytes) -> Iterator[Message]:
        """The messages that are whole now.  WireError: these are none of ours."""
        self._data += data
        while len(self._data) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._data)
            if size > MOST_BYTES:
                raise WireError(f"a frame announces {size:,} bytes; allowed: {MOST_BYTES:,}")
            end = _LENGTH.size + size
            if len(self._data) < end:
                return
            whole = bytes(self._data[_LENGTH.size : end])
            del self._data[:end]
            yield _message(whole)


def _message(data: bytes) -> Message:
    try:
        name, *values = json.loads(data.decode("utf-8", "surrogatepass"))
        found: Message = _KINDS[name](*values)
    except (ValueError, KeyError, TypeError) as error:
        raise WireError(f"a frame of {len(data):,} bytes is no message: {error}") from None
    return found


def launch(
    model: Path, config: EngineConfig, adapters: Mapping[str, str] | None = None, **loading: Any
) -> Launch:
    """The message that starts an engine; paths become texts."""
    return Launch(str(model), _plain(loading), _plain(asdict(config)), dict(adapters or {}))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    kinds = (str, int, float, bool, type(None))
    return {key: value if isinstance(value, kinds) else str(value) for key, value in values.items()}


def fault(error: Exception, where: Sequence[str] = ()) -> list[Any]:
    """An exception as it is sent."""
    return [type(error).__name__, str(error), list(where)]


def error_of(sent: list[Any]) -> Exception:
    """The exception: one of ours as what it was, others as EngineFault."""
    told = Fault(*sent)
    kind = getattr(errors, told.name, None)
    if isinstance(kind, type) and issubclass(kind, FourfoldError):
        found: Exception = kind(told.text)
        return found
    return EngineFault(told)


class EngineFault(Exception):
    """A mistake that the engine's process has made."""

    def __init__(self, told: Fault) -> None:
        super().__init__(f"{told.name}: {told.text}")
        self.told = told


def chunk_row(number: int, chunk: Chunk) -> list[Any]:
    """A chunk of the answer with this number."""
    row = [number, chunk.index, chunk.text, chunk.ids]
    if chunk.finish_reason is None and not chunk.logprobs:
        return row
    return [*row, chunk.finish_reason, chunk.stop_reason, logprob_rows(chunk.logprobs)]


def chunk_of(row: Sequence[Any]) -> Chunk:
    """chunk_row's chunk."""
    _, index, text, ids, *more = row
    if not more:
        return Chunk(text, tuple(ids), index=index)
    finish, stop, logprobs = more
    return Chunk(text, tuple(ids), finish, stop, index, tuple(logprobs_of(logprobs)))


def logprob_rows(found: Sequence[TokenLogprob | None]) -> list[Any]:
    return [None if one is None else [one.token, one.logprob, one.top] for one in found]


def logprobs_of(rows: Sequence[Any]) -> list[TokenLogprob]:
    """logprob_rows' log probabilities."""
    return [TokenLogprob(token, value, tuple(map(tuple, top))) for token, value, top in rows]


def layer_rows(layers: Sequence[LayerChoice]) -> list[list[Any]]:
    return [[getattr(layer, field.name) for field in fields(LayerChoice)] for layer in layers]


def layers_of(rows: Sequence[Sequence[Any]]) -> tuple[LayerChoice, ...]:
    """layer_rows' choices."""
    return tuple(LayerChoice(*map(_frozen, row)) for row in rows)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_STATS = [field.name for field in fields(EngineStats) if field.name not in ("counters", "tiers")]
_COUNTERS = [field.name for field in fields(Counters)]
_stats_row = attrgetter(*_STATS, *(f"counters.{name}" for name in _COUNTERS))


def stats_row(stats: EngineStats) -> list[Any]:
    tiers = stats.tiers
    return [*_stats_row(stats), None if tiers is None else list(tiers.to_dict().values())]


def stats_of(row: Sequence[Any]) -> EngineStats:
    """stats_row's stats."""
    values = dict(zip(_STATS, row, strict=False))
    counters = Counters(**dict(zip(_COUNTERS, row[len(_STATS) : -1], strict=True)))
    tiers = None if row[-1] is None else TierStats(*row[-1])
    return EngineStats(**values, counters=counters, tiers=tiers)
