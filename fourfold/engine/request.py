"""What is asked of an engine, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.engine.job import SHORT
from fourfold.engine.sampler import Sampling
from fourfold.errors import RequestError
from fourfold.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how to continue it.

    prompt: a text is continued as it is, with the beginning-of-sentence token in front; ids (a sequence, or a
    tensor [T] or [1, T]) are taken as given.  max_tokens: of the answer; None: as many as fit.
    stop: strings that end the answer and are not part of it.  priority: higher goes first.
    RequestError, on construction, names what is not allowed.
    """

    prompt: str | Sequence[int] | Tensor
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: str | Sequence[str] = ()
    priority: int = 0

    def __post_init__(self) -> None:
        whole = isinstance(self.max_tokens, int) and not isinstance(self.max_tokens, bool)
        if self.max_tokens is not None and not (whole and self.max_tokens >= 1):
            raise RequestError(f"max_tokens is {self.max_tokens!r}; allowed: a whole number from 1")
        if not isinstance(self.priority, int) or isinstance(self.priority, bool):
            raise RequestError(f"priority is {self.priority!r}; allowed: a whole number")


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
