"""Text out of a model: prefill the prompt in chunks, then one token at a time until something ends it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.engine.sampler import Sampling, sample
from fourfold.engine.stop import StopStrings
from fourfold.errors import RequestError
from fourfold.model.cache import Cache
from fourfold.model.transformer import Transformer
from fourfold.tokenizer import Tokenizer

PREFILL_CHUNK = 512  # tokens a forward of the prompt: bounds the memory for activations and logits

FinishReason = Literal["stop", "length"]


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `generate` that a conversation keeps from turn to turn."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    stop: str | Sequence[str]


def generate(
    m: Transformer,
    prompt: str | Sequence[int] | Tensor,
    *,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    cache: Cache | None = None,
) -> Generation:
    """Continue `prompt`, piece by piece: `for piece in fourfold.generate(m, "Once upon a time"): ...`

    A text is continued as it is, with the beginning-of-sentence token put in front once; special tokens
    spelled in it stay plain characters. Ids (a sequence, or a tensor [T] or [1, T]) are taken exactly as
    given: use them for rendered chats. Ends at the end-of-sentence token, at a stop string (not part of the
    text), after max_tokens, or where the context ends. The same seed gives the same text; without a seed one
    is drawn (`Generation.sampling.seed` tells it).

    m: what `fourfold.load` returned. tokenizer: the model's own (`m.tokenizer`) unless given.
    cache: of this model, holding a prefix of the prompt; it is continued (default: a new one).
    Raises RequestError, before anything is computed, for an argument that is not allowed or a prompt that
    does not fit.
    """
    tokenizer = tokenizer or m.tokenizer
    if tokenizer is None:
        raise RequestError("this model has no tokenizer; pass tokenizer=fourfold.tokenizer(folder)")
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        raise RequestError(f"max_tokens is {max_tokens!r}; allowed: a whole number from 1")
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed).seeded()
    ids = prompt_ids(prompt, tokenizer, m.config)
    cache = m.new_cache() if cache is None else cache
    if cache.length >= len(ids):
        raise RequestError(
            f"the cache holds {cache.length} tokens, the prompt only {len(ids)}; allowed: a shorter prefix"
        )
    return Generation(m, ids, sampling, max_tokens, StopStrings(stop), tokenizer, cache)


@dataclass
class Timing:
    """Seconds and tokens of one answer. The first token comes out of the prefill."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second; 0 before there is a measurement."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first; 0 when there was none."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


class Generation(Iterator[str]):
    """An answer that is being written: iterate for its pieces of text.

    ids: the tokens so far, without the end-of-sentence token. finish_reason: None while running or after an
    interruption, "stop" at the end-of-sentence token or a stop string, "length" at max_tokens or the end of
    the context. Leaving it early, by break or Ctrl-C, is safe; `rest()` gives what was still held back.
    """

    def __init__(
        self,
        m: Transformer,
        ids: list[int],
        sampling: Sampling,
        max_tokens: int,
        stop: StopStrings,
        tokenizer: Tokenizer,
        cache: Cache,
    ) -> None:
        self.prompt_ids = ids
        self.sampling = sampling
        self.cache = cache
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.timing = Timing()
        self._model = m
        self._limit = min(max_tokens, m.config.max_position_embeddings - len(ids) + 1)
        self._stop = stop
        self._decoder = tokenizer.stream()
        self._banned = torch.tensor(tokenizer.unused_ids(m.config.vocab_size), dtype=torch.int64)
        self._pieces = self._run()

    def __next__(self) -> str:
        return next(self._pieces)

    def rest(self) -> str:
        """Text held back so far: half a character, or the beginning of a stop string."""
        return self._stop.push(self._decoder.finish()) + self._stop.finish()

    def _run(self) -> Iterator[str]:
        logits = self._prefill()
        while True:
            token = sample(self._ban(logits), self.sampling, position=len(self.prompt_ids) + len(self.ids))
            if token == self._model.config.eos_token_id:
                self.finish_reason = "stop"
                break
            self.ids.append(token)
            if piece := self._stop.push(self._decoder.push(token)):
                yield piece
            if self._stop.hit is not None:
                self.finish_reason = "stop"
                return
            if len(self.ids) >= self._limit:
                self.finish_reason = "length"
                break
            logits = self._decode(token)
        if piece := self.rest():
            yield piece

    def _prefill(self) -> Tensor:
        """Logits [V] after the prompt."""
        start = time.perf_counter()
        fresh = self.prompt_ids[self.cache.length :]
        logits = torch.empty(0)
        for begin in range(0, len(fresh), PREFILL_CHUNK):
            logits = last_logits(self._model, fresh[begin : begin + PREFILL_CHUNK], self.cache)
        self.timing.prefill_tokens = len(fresh)
        self.timing.prefill_seconds = time.perf_counter() - start
        return logits

    def _decode(self, token: int) -> Tensor:
        """Logits [V] after one more token."""
        start = time.perf_counter()
        logits = last_logits(self._model, [token], self.cache)
        self.timing.decode_tokens += 1
        self.timing.decode_seconds += time.perf_counter() - start
        return logits

    def _ban(self, logits: Tensor) -> Tensor:
        """Never choose an id that the tokenizer cannot write (padding rows of the vocabulary)."""
        if self._banned.numel() == 0:
            return logits
        return logits.index_fill(0, self._banned.to(logits.device), float("-inf"))


def last_logits(m: Transformer, ids: Sequence[int], cache: Cache) -> Tensor:
    """Feed ids to the model; logits [V] f32 after the last of them."""
    out = m(torch.tensor([list(ids)], dtype=torch.int64, device=m.device), cache=cache, logits="last")
    return out.logits[0, -1]


def prompt_ids(prompt: str | Sequence[int] | Tensor, tokenizer: Tokenizer, config: ModelConfig) -> list[int]:
    """The ids of a prompt: a text gets the beginning-of-sentence token in front, ids are checked and kept.

    Raises RequestError for an empty list, an id outside the vocabulary, or more tokens than positions.
    """
    ids = [config.bos_token_id, *tokenizer.encode(prompt)] if isinstance(prompt, str) else _flat_ids(prompt)
    if not ids:
        raise RequestError("the prompt has no tokens; give at least one id, or a text (which may be empty)")
    if outside := [i for i in ids if not 0 <= i < config.vocab_size]:
        raise RequestError(
            f"token id {outside[0]} is not in the vocabulary; allowed: 0 to {config.vocab_size - 1}"
        )
    if len(ids) > config.max_position_embeddings:
        raise RequestError(
            f"the prompt has {len(ids):,} tokens; this model has positions for "
            f"{config.max_position_embeddings:,}: shorten the prompt"
        )
    return ids


def _flat_ids(prompt: Sequence[int] | Tensor) -> list[int]:
    if isinstance(prompt, Tensor):
        one_row = prompt.dim() == 1 or (prompt.dim() == 2 and prompt.shape[0] == 1)
        if not one_row or prompt.is_floating_point():
            raise RequestError(
                f"the prompt is a {prompt.dtype} tensor {list(prompt.shape)}; allowed: integers [T] or [1, T]"
            )
        return [int(i) for i in prompt.flatten().tolist()]
    if any(isinstance(i, bool) or not isinstance(i, int) for i in prompt):
        raise RequestError("the prompt holds what is no token id; allowed: a text, or whole numbers")
    return list(prompt)
