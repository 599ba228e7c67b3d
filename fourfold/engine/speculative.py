"""Guesses of the next tokens, which one pass of the model then verifies.

Two sources: what followed when the text last ended as it does now, and the model's own MTP block.  The MTP
block's guess is drawn with the key that the model's own draw at that position will use, from the same
filters, penalties and masks.  So both fall on the same token nearly as often as two distributions can agree,
and the answer is, token by token, the one without drafts, greedy or drawn.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor

from fourfold.engine.drafts import MOST, Lengths, Odds, Repetition, Wish
from fourfold.engine.job import Job, Share
from fourfold.engine.limits import Limits
from fourfold.engine.mtp_drafts import MtpDrafts, Writer
from fourfold.model.transformer import Transformer


@dataclass
class _Notes:
    """What is remembered of a request.

    repeating: its draft is a repetition.  expected: a position and the repetition's guess for it, where no
    draft will say whether it is right.
    """

    repetition: Repetition
    repeated: Odds
    guessed: Odds
    repeating: bool = False
    expected: tuple[int, int] | None = None


class Speculator:
    """Makes the drafts of an engine's requests, as long as they pay."""

    def __init__(self, model: Transformer, limits: Limits, *, mtp: bool) -> None:
        self._block = MtpDrafts(model, limits) if mtp else None
        self._lengths = Lengths()
        self._repeated, self._guessed = Odds(), Odds()
        self._notes: WeakKeyDictionary[Job, _Notes] = WeakKeyDictionary()

    def learn(self, shares: Sequence[Share], accepted: Mapping[Job, int], seconds: float) -> None:
        """A step is done.  accepted: of each verified draft, the tokens that were right."""
        if all(share.job in accepted and share.new == 1 for share in shares):
            drafted = sum(len(share.drafts) for share in shares)
            self._lengths.learn(len(shares), drafted, seconds, len(shares) + sum(accepted.values()))
        for share in shares:
            if share.drafts and (notes := self._notes.get(share.job)):
                own, common = (
                    (notes.repeated, self._repeated) if notes.repeating else (notes.guessed, self._guessed)
                )
                for odds in (own, common):
                    odds.learn(len(share.drafts), accepted.get(share.job, 0))

    def draft(self, writers: Sequence[Writer], streams: Tensor) -> None:
        """Put drafts on the jobs of those who need one more token.  streams: of the step that was done."""
        if self._lengths.rest():
            return
        begun = time.perf_counter()
        ready = [writer for writer in writers if writer.job.pending == 1]
        wishes = [self._wish(writer) for writer in ready]
        lengths = dict(zip(ready, self._lengths.choose(len(ready), wishes), strict=True))
        for writer in ready:
            notes = self._notes[writer.job]
            if notes.repeating and lengths[writer]:
                writer.job.drafts = notes.repetition.draft(lengths[writer])
                notes.expected = None
        self._lengths.pace.looking.learn(time.perf_counter() - begun)
        if self._block is not None and self._lengths.willing:
            self._ask(self._block, writers, lengths, streams)

    def _ask(
        self, block: MtpDrafts, writers: Sequence[Writer], lengths: Mapping[Writer, int], streams: Tensor
    ) -> None:
        start = time.perf_counter()
        wanted = [
            0 if writer not in lengths or self._notes[writer.job].repeating else lengths[writer]
            for writer in writers
        ]
        for writer, draft in zip(writers, block.draft(writers, wanted, streams), strict=True):
            if draft:
                writer.job.drafts = draft
        if any(wanted) and len(lengths) == len(writers):
            asked = sum(length > 0 for length in wanted)
            self._lengths.learn_guessing(len(lengths), asked, max(wanted), time.perf_counter() - start)

    def _wish(self, writer: Writer) -> Wish:
        job = writer.job
        notes = self._notes.get(job)
        if notes is None:
            notes = _Notes(Repetition(job.tokens.ids), self._repeated.like(), self._guessed.like())
            self._notes[job] = notes
        if notes.expected is not None:
            position, token = notes.expected
            if position < len(job.tokens):
                right = int(job.tokens.ids[position] == token)
                notes.repeated.learn(1, right)
                self._repeated.learn(1, right)
        repeated = notes.repetition.draft(1)
        notes.expected = (len(job.tokens), repeated[0]) if repeated else None
        block = self._block is not None and self._lengths.willing
        notes.repeating = bool(repeated) and not (block and notes.guessed.each > notes.repeated.each)
        most = min(writer.most, MOST)
        if notes.repeating:
            return Wish(notes.repeated.each, most, free=True)
        return Wish(notes.guessed.each, most if self._block is not None else 0, free=False)
