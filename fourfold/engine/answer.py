"""An answer that is being written: tokens in, chunks of text out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fourfold.engine.inspection import LayerChoice
from fourfold.engine.logprobs import TokenLogprob
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from fourfold.engine.stop import StopStrings
from fourfold.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "constraint"]


@dataclass(frozen=True)
class Chunk:
    """What one token added: its id, and the text that became certain with it (which may be empty).

    index: of the choice, where there are n.  logprobs: of the ids, if they were asked for.
    finish_reason: in a choice's last chunk, "stop" (the end-of-sentence token, a stop token, a stop string),
    "length", or "constraint" (its constraint allows no token, or became too complex to go on).
    stop_reason: the stop string or the id of the stop token; None for the end-of-sentence token.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass
class Timing:
    """Tokens of one answer and seconds of the steps that computed them, others' tokens in the same steps
    included.  The first token comes out of the prefill."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    def add(self, tokens: int, seconds: float, *, prompt: bool) -> None:
        """A step that computed `tokens` of the prompt or, after it, gave so many to the answer."""
        if prompt:
            self.prefill_tokens += tokens
            self.prefill_seconds += seconds
        else:
            self.decode_tokens += tokens
            self.decode_seconds += seconds

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second; 0 before there is a measurement."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first; 0 when there was none."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


class Choice:
    """One of the texts of an answer.

    ids: its tokens so far, without the one that ended it.  sampling: with the seed that is used.
    finish_reason, stop_reason: as in `Chunk`; None while it runs, and after an error or a cancellation.
    ends: tokens that end it.
    """

    def __init__(
        self, index: int, request: Request, limit: int, tokenizer: Tokenizer, eos: int, chunks: deque[Chunk]
    ) -> None:
        self.index = index
        self.sampling = request.sampling.derived(index)
        self.limit = limit
        self.min_tokens = request.min_tokens
        self.eos = eos
        self.ends = frozenset(request.stop_tokens) | (frozenset() if request.ignore_eos else {eos})
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.ended = False
        self._stop = StopStrings(request.stop)
        self._decoder = tokenizer.stream()
        self._chunks = chunks

    def push(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """The next token."""
        if token in self.ends:
            self.stop_reason = None if token == self.eos else token
            self.finish("stop")
            return
        self.ids.append(token)
        text = self._decoder.push(token)
        # The text of the first min_tokens is no part of a stop string.
        piece = self._stop.push(text) if len(self.ids) > self.min_tokens else text
        reason: FinishReason | None = None
        if self._stop.hit is not None:
            reason, self.stop_reason = "stop", self._stop.hit
        elif len(self.ids) >= self.limit:
            reason, piece = "length", piece + self.rest()
        self._say(piece, (token,), () if logprob is None else (logprob,), reason)

    def finish(self, reason: FinishReason) -> None:
        """It ends here, without another token."""
        self._say(self.rest(), (), (), reason)

    def rest(self) -> str:
        """Text that is held back: half a character, or the beginning of a stop string."""
        return self._stop.push(self._decoder.finish()) + self._stop.finish()

    def _say(
        self,
        text: str,
        ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...],
        reason: FinishReason | None,
    ) -> None:
        self._chunks.append(Chunk(text, ids, reason, self.stop_reason, self.index, logprobs))
        self.finish_reason = reason
        self.ended = reason is not None


class Answer:
    """What one request gets.  The engine pushes tokens, who asked takes chunks.

    choices: its texts, one unless n says more.  error: what ended all of them.
    cached_tokens: of the prompt, that did not have to be computed.
    prompt_logprobs: those of the prompt's tokens so far, if they were asked for; the first token has none.
    layers: what each of them chose at the prompt's last token, if the request asks for that.
    ids, finish_reason, sampling: those of the first choice.
    """

    def __init__(
        self, prompt_ids: Sequence[int], request: Request, limit: int, tokenizer: Tokenizer, eos: int
    ) -> None:
        self.request = replace(request, sampling=request.sampling.seeded())
        self.prompt_ids = list(prompt_ids)
        self.limit = limit
        self.error: Exception | None = None
        self.cached_tokens = 0
        self.prompt_logprobs: list[TokenLogprob | None] = [] if request.prompt_logprobs is None else [None]
        self.layers: tuple[LayerChoice, ...] = ()
        self.timing = Timing()
        self._chunks: deque[Chunk] = deque()
        self.choices = tuple(
            Choice(index, self.request, limit, tokenizer, eos, self._chunks) for index in range(request.n)
        )

    @property
    def ended(self) -> bool:
        return all(choice.ended for choice in self.choices)

    @property
    def ids(self) -> list[int]:
        return self.choices[0].ids

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.choices[0].finish_reason

    @property
    def sampling(self) -> Sampling:
        return self.choices[0].sampling

    def give_up(self, error: Exception | None) -> None:
        """It ends here without an ending: for this reason, or because nobody wants it."""
        self.error = error
        for choice in self.choices:
            choice.ended = True

    @property
    def waiting(self) -> bool:
        """Whether there is a chunk to take."""
        return bool(self._chunks)

    def take(self) -> Chunk | None:
        """The next chunk of any choice, if there is one."""
        return self._chunks.popleft() if self._chunks else None

    def withheld(self) -> str:
        """Text of the first choice that nobody took so far, and what may have become a longer character or a
        stop string."""
        taken = "".join(chunk.text for chunk in self._chunks if chunk.index == 0)
        self._chunks.clear()
        return taken + self.choices[0].rest()
