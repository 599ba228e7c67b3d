"""What a job is for: one text of an answer, and how its next tokens are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fourfold.engine.answer import Answer, Choice
from fourfold.engine.chooser import Chooser
from fourfold.engine.job import Job
from fourfold.engine.logprobs import token_logprob
from fourfold.engine.masks import Stuck
from fourfold.engine.sampler import sample
from fourfold.engine.trace_file import now


@dataclass(frozen=True, eq=False)
class Work:
    """One choice of an answer, and the history that its choosing depends on."""

    job: Job
    answer: Answer
    choice: Choice
    chooser: Chooser
    came: float = field(default_factory=now)
    """When it was asked for, on the clock of traces."""

    def replay(self, ids: Sequence[int]) -> None:
        """These tokens are known from before."""
        for token in ids:
            self.choice.push(token)
        if ids and not self.choice.ended:
            self.job.tokens.ids += ids
            self.chooser.accept(ids)

    def say(self, logits: Tensor, position: int, drafts: tuple[int, ...]) -> tuple[list[int], int]:
        """The next tokens: one from each row of logits [n, V], as long as the draft has said the same.

        position: of the first.  Returns the tokens that the text goes on with, without the one that ends it,
        and how many of them were drafted.
        """
        said: list[int] = []
        accepted = 0
        for row, draft in zip(logits, (*drafts, None), strict=True):
            token = self._say_one(row, position + len(said), drafts[: len(said)])
            if token is None:
                return said, accepted
            said.append(token)
            if token != draft:
                break
            accepted += 1
        self.chooser.accept(said)
        return said, accepted

    def guess(self, logits: Tensor, drafted: tuple[int, ...], *, position: int) -> int:
        """What a draft's logits [V] say after tokens drafted before it; position: of the first of these.

        The model's own draw there has the same key.  RequestError: the logits are no numbers.  Stuck: the
        constraint allows nothing there.
        """
        processed = self.chooser.processed(logits, drafted)
        return sample(processed, self.choice.sampling, position + len(drafted))

    def score(self, position: int, logits: Tensor) -> None:
        """Logits [n, V] after the prompt's tokens from `position` on."""
        top = self.answer.request.prompt_logprobs
        assert top is not None
        found = self.answer.prompt_logprobs
        for place, row in enumerate(logits, start=position + 1):
            # What a preemption or a step that failed made us compute again is known.
            if len(found) <= place < len(self.answer.prompt_ids):
                found.append(token_logprob(row, self.answer.prompt_ids[place], top))

    def _say_one(self, logits: Tensor, position: int, before: tuple[int, ...]) -> int | None:
        """The token after those of this step; None where the text has ended."""
        choice, request = self.choice, self.answer.request
        if self.answer.limit == 0:
            choice.finish("length")
            return None
        try:
            processed = self.chooser.processed(logits, before)
        except Stuck:
            choice.finish("constraint")
            return None
        token = sample(processed, choice.sampling, position)
        logprob = None if request.logprobs is None else token_logprob(logits, token, request.logprobs)
        choice.push(token, logprob)
        return None if choice.ended else token
