"""Text out of a model, one answer at a time: an engine for a single request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from torch import Tensor

from fourfold.engine.answer import FinishReason, Timing
from fourfold.engine.config import CACHE_SIZE, Draft, EngineConfig, draft_shape
from fourfold.engine.constraint import Constraint
from fourfold.engine.engine import Engine
from fourfold.engine.request import Request, prompt_ids
from fourfold.engine.sampler import Sampling
from fourfold.errors import RequestError
from fourfold.model.transformer import Transformer
from fourfold.tokenizer import Tokenizer


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `generate` that a conversation keeps from turn to turn."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: str | Sequence[str]
    stop_tokens: Sequence[int]
    constraint: Constraint | None


def generate(
    m: Transformer,
    prompt: str | Sequence[int] | Tensor,
    *,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    stop_tokens: Sequence[int] = (),
    constraint: Constraint | None = None,
    draft: Draft = "none",
    tokenizer: Tokenizer | None = None,
    cache_dir: str | Path | None = None,
    cache_size: int | str = CACHE_SIZE,
) -> Generation:
    """Continue `prompt`, piece by piece: `for piece in fourfold.generate(m, "Once upon a time"): ...`

    A text is continued as it is, with the beginning-of-sentence token put in front once; special tokens
    spelled in it stay plain characters. Ids (a sequence, or a tensor [T] or [1, T]) are taken exactly as
    given: use them for rendered chats. Ends at the end-of-sentence token, a stop token or a stop string (no
    part of the text), after max_tokens, or where the context ends. The same seed gives the same text;
    without a seed one is drawn (`Generation.sampling.seed` tells it). docs/sampling.md says what the options
    mean.

    m: what `fourfold.load` returned. tokenizer: the model's own (`m.tokenizer`) unless given.
    draft: "mtp" or "ngram" guess tokens that are then verified, as long as that is faster; see EngineConfig.
    Nothing is kept for a next call but in cache_dir, where `cache_size` may be used, and then a prompt that
    begins like one before is not computed again; `fourfold.Engine` serves conversations, and many requests at
    once.
    Raises RequestError, before anything is computed, for an argument that is not allowed or a prompt that
    does not fit; ConfigError for a cache_dir that cannot be used.
    """
    tokenizer = tokenizer or m.tokenizer
    if tokenizer is None:
        raise RequestError("this model has no tokenizer; pass tokenizer=fourfold.tokenizer(folder)")
    sampling = Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=logit_bias or {},
        seed=seed,
    )
    ids = prompt_ids(prompt, tokenizer, m.config)
    request = Request(
        prompt=ids,
        max_tokens=max_tokens,
        sampling=sampling,
        stop=stop,
        stop_tokens=stop_tokens,
        constraint=constraint,
    )
    longest = min(len(ids) + max_tokens, m.config.max_position_embeddings)
    config = EngineConfig.for_one(
        m.cache_shape,
        len(ids),
        longest,
        drafting=draft_shape(m, draft),
        draft=draft,
        cache_dir=cache_dir,
        cache_size=cache_size,
    )
    engine = Engine(m, config, tokenizer=tokenizer)
    return Generation(engine, request, alone=True)


class Generation(Iterator[str]):
    """An answer that is being written: iterate for its pieces of text.

    ids: the tokens so far, without the end-of-sentence token. finish_reason: None while running or after an
    interruption, "stop" at the end-of-sentence token or a stop string, "length" at max_tokens or the end of
    the context, "constraint" where a constraint leaves no token. Leaving it early, by break or Ctrl-C, is
    safe; `rest()` gives what was still held back.
    """

    def __init__(self, engine: Engine, request: Request, *, alone: bool = False) -> None:
        """alone: the engine ends with the answer."""
        self._engine = engine
        self._alone = alone
        self._answer = engine.submit(request)
        self.prompt_ids = self._answer.prompt_ids
        self.sampling = self._answer.sampling
        self.ids = self._answer.ids
        self._pieces = self._run()

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._answer.finish_reason

    @property
    def cached_tokens(self) -> int:
        """Of the prompt, that did not have to be computed."""
        return self._answer.cached_tokens

    @property
    def timing(self) -> Timing:
        return self._answer.timing

    def __next__(self) -> str:
        return next(self._pieces)

    def rest(self) -> str:
        """Text not shown so far: half a character, or the beginning of a stop string."""
        return self._answer.withheld()

    def _run(self) -> Iterator[str]:
        try:
            for chunk in self._engine.chunks(self._answer):
                if chunk.text:
                    yield chunk.text
        finally:
            if self._alone:
                self._engine.close()
