"""An answer that is being written: tokens in, chunks of text out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fourfold.engine.sampler import Sampling
from fourfold.engine.stop import StopStrings
from fourfold.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Chunk:
    """What one token added: its id, and the text that became certain with it (which may be empty).

    finish_reason: in the last chunk, "stop" (the end-of-sentence token, a stop string) or "length".
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason | None = None


@dataclass
class Timing:
    """Tokens of one answer and seconds of the steps that computed them, others' tokens in the same steps
    included.  The first token comes out of the prefill."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    def add(self, tokens: int, seconds: float, *, prompt: bool) -> None:
        """A step that computed `tokens` of it; after the prompt that is one, or many to recover one."""
        if prompt:
            self.prefill_tokens += tokens
            self.prefill_seconds += seconds
        else:
            self.decode_tokens += 1
            self.decode_seconds += seconds

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second; 0 before there is a measurement."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first; 0 when there was none."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


class Answer:
    """One request's answer.  The engine pushes tokens, who asked takes chunks.

    ids: the tokens so far, without the end-of-sentence token.  sampling: with the seed that is used.
    finish_reason: None while it runs, and after an error or a cancellation.  error: what ended it.
    cached_tokens: of the prompt, that did not have to be computed.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        limit: int,
        stop: StopStrings,
        tokenizer: Tokenizer,
    ) -> None:
        self.prompt_ids = list(prompt_ids)
        self.sampling = sampling
        self.limit = limit
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self.ended = False
        self.cached_tokens = 0
        self.timing = Timing()
        self._stop = stop
        self._decoder = tokenizer.stream()
        self._chunks: deque[Chunk] = deque()

    def push(self, token: int, *, end: bool) -> None:
        """The next token; `end`: it is the end-of-sentence token."""
        if end:
            self._finish("stop", Chunk(self._rest(), (), "stop"))
            return
        self.ids.append(token)
        piece = self._stop.push(self._decoder.push(token))
        if self._stop.hit is not None:
            self._finish("stop", Chunk(piece, (token,), "stop"))
        elif len(self.ids) >= self.limit:
            self._finish("length", Chunk(piece + self._rest(), (token,), "length"))
        else:
            self._chunks.append(Chunk(piece, (token,)))

    def give_up(self, error: Exception | None) -> None:
        """It ends here without an ending: for this reason, or because nobody wants it."""
        self.error = error
        self.ended = True

    def take(self) -> Chunk | None:
        """The next chunk, if there is one."""
        return self._chunks.popleft() if self._chunks else None

    def withheld(self) -> str:
        """Text that nobody took so far, and what may have become a longer character or a stop string."""
        taken = "".join(chunk.text for chunk in self._chunks)
        self._chunks.clear()
        return taken + self._rest()

    def _rest(self) -> str:
        return self._stop.push(self._decoder.finish()) + self._stop.finish()

    def _finish(self, reason: FinishReason, last: Chunk) -> None:
        self.finish_reason = reason
        self._chunks.append(last)
        self.ended = True
