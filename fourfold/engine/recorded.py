"""Decode steps as recordings that the device repeats, one for each size of batch and context that came up."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch import Tensor

from fourfold import kernels
from fourfold.kernels.recording import Recording
from fourfold.model.linear import Noted
from fourfold.model.paged import PagedCache
from fourfold.model.paged_fixed import FixedStep
from fourfold.model.paged_layout import Span
from fourfold.model.transformer import Transformer

_LEAST_CONTEXT = 2048
"""Tokens; sizes double from here, so that a step reads no more than twice what its longest sequence has."""
_MOST_TOKENS = 1 << 22
"""Batch times context: every sequence of a step is read as if it were as long as the longest."""


class RecordedSteps:
    """Steps of one token of each of up to `most` sequences in `cache`, where the device can record them.

    The first step of a size runs as it is and is recorded then.  Where that fails no step is recorded any
    more; stderr says so, and why.
    """

    def __init__(self, model: Transformer, cache: PagedCache, most: int) -> None:
        self._model, self._cache, self._most = model, cache, most
        self._record = kernels.recorder(model.device.type)
        self._steps: dict[tuple[int, int], tuple[FixedStep, Recording]] = {}
        self._changes = Noted.changes
        self._told: set[str] = set()
        if self._record is not None and not model.runs_at_once:
            self._give_up("routed experts are fetched while a step runs")

    def compute(self, spans: Sequence[Span], ids: Tensor) -> tuple[Tensor, Tensor] | None:
        """Streams [1, N, M, D] as of `Transformer.paged_streams`, and the logits [N, V] f32 of all tokens,
        both until the next call; None, and nothing done, for steps that are not recorded."""
        if self._record is None or any(span.new > 1 for span in spans):
            return None
        if self._changes != Noted.changes:
            # A recording reads weights where they lay.
            self._steps.clear()
            self._changes = Noted.changes
        size = self._size(spans)
        if size[0] * size[1] > _MOST_TOKENS:
            self._tell(f"beyond {_MOST_TOKENS:,} tokens (batch times longest sequence) ")
            return None
        if size not in self._steps:
            streams, logits = self._begin(size, spans, ids)
        else:
            step, recording = self._steps[size]
            self._model.fill(step, ids, spans, self._cache)
            recording.replay()
            streams, logits = recording.results
        return streams[:, : len(spans)], logits[: len(spans)]

    def _size(self, spans: Sequence[Span]) -> tuple[int, int]:
        """Batch and context, as powers of two."""
        longest = max(span.end for span in spans)
        batch = min(_power_of_two(len(spans)), self._most)
        return batch, max(_LEAST_CONTEXT, _power_of_two(longest))

    def _begin(self, size: tuple[int, int], spans: Sequence[Span], ids: Tensor) -> tuple[Tensor, Tensor]:
        assert self._record is not None
        step = self._cache.fixed_step(*size)
        self._model.fill(step, ids, spans, self._cache)
        found = self._model.paged_fixed(step, self._cache)
        beside = next((recording for _, recording in self._steps.values()), None)
        try:
            recording = self._record(lambda: self._model.paged_fixed(step, self._cache), beside)
        except Exception as error:  # whatever a device may raise
            self._give_up((str(error).strip() or repr(error)).splitlines()[0][:200])
        else:
            self._steps[size] = step, recording
        return found

    def _give_up(self, why: str) -> None:
        self._record = None
        self._tell("", f": {why}")

    def _tell(self, when: str, why: str = "") -> None:
        text = f"{when}decode steps are not recorded, every operation is launched by itself{why}"
        if text not in self._told:
            self._told.add(text)
            print(f"fourfold: {text}", file=sys.stderr, flush=True)


def _power_of_two(n: int) -> int:
    """The next one from n on."""
    return 1 << (n - 1).bit_length()
