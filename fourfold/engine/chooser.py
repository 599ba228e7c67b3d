"""What one answer makes of the model's logits before a token is drawn: bias, penalties, what must not come.

The order is vLLM's: what must not come, logit bias, repetition, frequency and presence penalty; temperature
and the filters follow in `sampler.distribution`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

from fourfold.engine.masks import Masks
from fourfold.engine.sampler import Sampling


class Chooser:
    """The history of one answer, as far as it changes the logits of the next token.

    prompt_ids: tokens before it.  unusable [n] int64: ids that the tokenizer cannot write.  ends: tokens that
    must not come among the first `min_tokens`, unless `masks`, those of its constraint, allow nothing else.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: Sequence[int],
        vocab_size: int,
        unusable: Tensor,
        *,
        ends: frozenset[int] = frozenset(),
        min_tokens: int = 0,
        masks: Masks | None = None,
    ) -> None:
        self.sampling = sampling
        self._unusable = unusable
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64)
        self._min_tokens = min_tokens
        self._masks = masks
        self._length = 0
        self._biased = torch.tensor(list(sampling.logit_bias), dtype=torch.int64)
        self._bias = torch.tensor([float(bias) for bias in sampling.logit_bias.values()])
        self._counts = torch.zeros(vocab_size) if _counted(sampling) else None
        self._seen: Tensor | None = None
        if sampling.repetition_penalty != 1.0:
            self._seen = torch.zeros(vocab_size, dtype=torch.bool)
            self._seen[torch.tensor(list(prompt_ids), dtype=torch.int64)] = True

    def accept(self, tokens: Sequence[int]) -> None:
        """The answer goes on with these."""
        self._length += len(tokens)
        if self._masks is not None:
            self._masks.accept(tokens)
        if self._counts is not None or self._seen is not None:
            self._counts, self._seen = self._after(tokens)

    def processed(self, logits: Tensor, drafted: Sequence[int] = ()) -> Tensor:
        """The logits that `sample` and `distribution` read, at the position after the history and `drafted`.

        logits: [V] f32 on the CPU, the model's own; they stay as they are.  Stuck: the constraint allows no
        token here.
        """
        early = self._length + len(drafted) < self._min_tokens
        if self._masks is not None:
            allowed = self._masks.after(drafted)
            if early and bool((longer := allowed.index_fill(0, self._ends, False)).any()):
                allowed = longer
            logits = torch.where(allowed, logits, -inf)
        else:
            forbidden = torch.cat((self._unusable, self._ends)) if early else self._unusable
            if forbidden.numel():
                logits = logits.index_fill(0, forbidden, -inf)
        if self._biased.numel():
            logits = logits.index_add(0, self._biased, self._bias)
        counts, seen = self._after(drafted)
        if seen is not None:
            penalty = self.sampling.repetition_penalty
            logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        if counts is not None:
            logits = logits - self.sampling.frequency_penalty * counts
            logits = logits - self.sampling.presence_penalty * (counts > 0).float()
        return logits

    def draft(self, tokens: Sequence[int]) -> None:
        """The answer may go on with these: begin what `processed` then needs."""
        if self._masks is not None:
            self._masks.draft(tokens)

    def _after(self, tokens: Sequence[int]) -> tuple[Tensor | None, Tensor | None]:
        """How often the answer has each token, and which tokens came, when these have come too."""
        counts, seen = self._counts, self._seen
        if not tokens:
            return counts, seen
        ids = torch.tensor(list(tokens), dtype=torch.int64)
        if counts is not None:
            counts = counts.index_add(0, ids, torch.ones(len(tokens)))
        if seen is not None:
            seen = seen.index_fill(0, ids, True)
        return counts, seen


def _counted(sampling: Sampling) -> bool:
    return sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
