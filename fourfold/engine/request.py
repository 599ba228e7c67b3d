"""What is asked of an engine, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import Any

from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.engine.constraint import Constraint
from fourfold.engine.job import SHORT
from fourfold.engine.sampler import Sampling
from fourfold.errors import RequestError
from fourfold.tokenizer import Tokenizer

MOST_ANSWERS = 128
MOST_LOGPROBS = 20
LONGEST_ID = 200


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how to continue it.

    prompt: a text is continued as it is, with the beginning-of-sentence token in front; ids (a sequence, or a
    tensor [T] or [1, T]) are taken as given.
    max_tokens: of an answer; None: as many as fit; 0: none, for the prompt's logprobs alone.
    min_tokens: before them no end-of-sentence token, stop token or stop string ends it.
    n: how many answers, each with a seed of its own that follows from the first's.
    stop: strings that end the answer and are not part of it; stop_tokens: ids that do.
    ignore_eos: the end-of-sentence token is a token like others.
    logprobs: None, or give each token's log probability and those of so many most likely tokens, up to 20;
    prompt_logprobs: the same for the prompt, whose beginning is then computed even if it is cached.
    constraint: what the answer must look like.  priority: higher goes first.
    id: a name under which an engine with a cache_dir logs it, for `Engine.resume`; no two may run under one.
    adapter: name of the engine's adapter that computes it; "" is the base alone.
    label: what the engine's trace calls it.
    inspect: say what each layer chooses at the prompt's last token (`Answer.layers`), where the one token of
    the answer is decided; of such a request nothing is kept for others.
    scope: beginnings that were computed for one scope are not found from another, nor by the time they take.
    RequestError, on construction, names what is not allowed.
    """

    prompt: str | Sequence[int] | Tensor
    max_tokens: int | None = None
    min_tokens: int = 0
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    stop: str | Sequence[str] = ()
    stop_tokens: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    priority: int = 0
    id: str | None = None
    adapter: str = ""
    label: str = ""
    inspect: bool = False
    scope: str = ""

    def __post_init__(self) -> None:
        least = 1 if self.prompt_logprobs is None else 0
        if self.max_tokens is not None and not _within(self.max_tokens, least):
            more = "" if least == 0 else " (0 with prompt_logprobs)"
            raise RequestError(
                f"max_tokens is {self.max_tokens!r}; allowed: a whole number from {least}{more}"
            )
        most = inf if self.max_tokens is None else self.max_tokens
        if not _within(self.min_tokens, 0, most):
            raise RequestError(
                f"min_tokens is {self.min_tokens!r}; allowed: a whole number from 0 to max_tokens"
            )
        if not _within(self.n, 1, MOST_ANSWERS):
            raise RequestError(f"n is {self.n!r}; allowed: a whole number from 1 to {MOST_ANSWERS}")
        if wrong := [token for token in self.stop_tokens if not _within(token, 0)]:
            raise RequestError(f"stop_tokens holds {wrong[0]!r}; allowed: token ids, whole numbers from 0")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and not _within(value, 0, MOST_LOGPROBS):
                raise RequestError(f"{name} is {value!r}; allowed: a whole number from 0 to {MOST_LOGPROBS}")
        if self.ignore_eos and self.constraint is not None:
            raise RequestError(
                "ignore_eos is True with a constraint; allowed: one of them, for end-of-sentence is "
                "what ends a constraint"
            )
        if self.inspect and (self.max_tokens, self.n) != (1, 1):
            raise RequestError(
                f"inspect is True with max_tokens {self.max_tokens} and n {self.n}; allowed: with 1 and 1"
            )
        if not isinstance(self.priority, int) or isinstance(self.priority, bool):
            raise RequestError(f"priority is {self.priority!r}; allowed: a whole number")
        if self.id is not None and not (isinstance(self.id, str) and 0 < len(self.id) <= LONGEST_ID):
            raise RequestError(f"id is {self.id!r}; allowed: a text of 1 to {LONGEST_ID} characters")

    def to_json(self) -> dict[str, Any]:
        """As JSON values, where the prompt is a text or a list; from_json makes the same request of them."""
        return {**asdict(replace(self, prompt=())), "prompt": self.prompt}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Request:
        """What to_json gave.  RequestError, TypeError, KeyError: it did not."""
        sampling, constraint = dict(values["sampling"]), values["constraint"]
        sampling["logit_bias"] = {int(token): bias for token, bias in sampling["logit_bias"].items()}
        own = {
            "sampling": Sampling(**sampling),
            "constraint": None if constraint is None else Constraint(**constraint),
        }
        return cls(**{**values, **own})


def _within(value: object, low: int, high: float = inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def prompt_ids(prompt: str | Sequence[int] | Tensor, tokenizer: Tokenizer, config: ModelConfig) -> list[int]:
    """The ids of a prompt: a text gets the beginning-of-sentence token in front, ids are checked and kept.

    Raises RequestError for an empty list, an id outside the vocabulary, or more tokens than positions.
    """
    if not isinstance(prompt, str | Tensor):
        _check_length(len(prompt), config)  # before each of them is looked at
    ids = [config.bos_token_id, *tokenizer.encode(prompt)] if isinstance(prompt, str) else _flat_ids(prompt)
    _check_length(len(ids), config)
    if not ids:
        raise RequestError("the prompt has no tokens; give at least one id, or a text (which may be empty)")
    if outside := [i for i in ids if not 0 <= i < config.vocab_size]:
        raise RequestError(
            f"token id {outside[0]} is not in the vocabulary; allowed: 0 to {config.vocab_size - 1}"
        )
    return ids


def _check_length(tokens: int, config: ModelConfig) -> None:
    if tokens > config.max_position_embeddings:
        raise RequestError(
            f"the prompt has {tokens:,} tokens; this model has positions for "
            f"{config.max_position_embeddings:,}: shorten the prompt"
        )


def check_ids(request: Request, config: ModelConfig) -> None:
    """Raises RequestError for a token id in logit_bias or stop_tokens outside the vocabulary."""
    for name, ids in (("logit_bias", request.sampling.logit_bias), ("stop_tokens", request.stop_tokens)):
        if outside := [token for token in ids if token >= config.vocab_size]:
            raise RequestError(
                f"{name} names token id {outside[0]}; allowed: 0 to {config.vocab_size - 1}, the vocabulary"
            )


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


def boundaries(ids: Sequence[int], special: frozenset[int]) -> set[int]:
    """Where in a prompt a later one is likely to branch off: positions worth a snapshot.

    Before its last token: the same prompt again needs that token's logits, and a thinking turn comes back
    without its last token, the mark that thinking begins.  After the marks in front of the last message: an
    edited message branches off there.
    """
    found = {len(ids) - 1}
    last = len(ids) - 1
    while last >= 0 and ids[last] in special:  # the marks that begin the answer
        last -= 1
    while last >= 0 and ids[last] not in special:  # the last message
        last -= 1
    return {position for position in (*found, last + 1) if position >= SHORT}
