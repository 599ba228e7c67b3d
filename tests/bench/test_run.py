"""Engines take turns, and a peer that fails does not end the run."""

from __future__ import annotations

import pytest

from fourfold.bench.engines import Cell, Sample
from fourfold.bench.run import Settings, run, summary, usual_contexts
from fourfold.errors import RequestError

SETTINGS = Settings(contexts=(8, 0), threads=(1, 2), prefill=(4,), decode=2, repetitions=3)


class Fake:
    """Notes its turns; fails from the one numbered `fails`."""

    def __init__(self, name: str, diary: list[tuple[str, int, int]], fails: int = 10**6) -> None:
        self.name, self._diary, self._left = name, diary, fails

    def measure(self, cell: Cell) -> Sample:
        self._left -= 1
        if self._left < 0:
            raise RequestError(f"{self.name} broke")
        self._diary.append((self.name, cell.threads, cell.context))
        return Sample(10.0, 1.0)

    def report(self) -> dict[str, object]:
        return {}

    def close(self) -> None:
        pass


class Limits:
    """A machine that gets faster with every question."""

    asked = 0

    def read_bandwidth(self, threads: int) -> float:
        self.asked += 1
        return float(self.asked)

    def peaks(self, threads: int) -> dict[str, float]:
        return {"f32 torch": 5.0 * threads, "bf16 torch": 7.0 + self.asked}


def test_engines_take_turns_within_every_repetition():
    diary: list[tuple[str, int, int]] = []
    limits = Limits()
    outcome = run(Fake("a", diary), [Fake("b", diary)], limits, SETTINGS)
    once = [(name, context) for context in (0, 8) for name in ("a", "b")]
    assert [(name, context) for name, _, context in diary] == once * 6
    assert [threads for _, threads, _ in diary] == [1] * 12 + [2] * 12
    assert {len(samples) for samples in outcome.samples.values()} == {3}
    assert limits.asked == len(diary) == sum(map(len, outcome.bandwidth.values()))
    # The peaks of the first and of the last repetition, whichever is higher.
    assert outcome.peaks[1] == {"f32 torch": 5.0, "bf16 torch": 15.0}
    assert outcome.peaks[2]["f32 torch"] == 10.0
    assert not outcome.left_out


def test_further_prompts_begin_at_nothing_and_are_not_decoded_after():
    settings = Settings(contexts=(8, 0), threads=(1,), prefill=(4, 30, 4), decode=2, repetitions=1)
    assert settings.cells(1) == [Cell(1, 0, 4, 2), Cell(1, 8, 4, 2), Cell(1, 0, 30, 0)]
    assert settings.longest == 30
    assert SETTINGS.longest == 12


def test_a_peer_that_fails_is_left_out_and_named():
    diary: list[tuple[str, int, int]] = []
    outcome = run(Fake("a", diary), [Fake("b", diary, fails=3)], Limits(), SETTINGS)
    assert outcome.left_out == {"b": "b broke"}
    assert sum(name == "b" for name, _, _ in diary) == 3
    assert sum(name == "a" for name, _, _ in diary) == 12


def test_our_own_failure_is_an_error():
    with pytest.raises(RequestError, match="a broke"):
        run(Fake("a", [], fails=1), [], Limits(), SETTINGS)


def test_usual_contexts_fit_the_model():
    assert usual_contexts(1 << 20) == (0, 512, 2048)
    assert usual_contexts(1536) == (0, 512)
    assert usual_contexts(-10) == (0,)


def test_summary_of_rates():
    assert summary([1.0, 5.0, 2.0]) == {"best": 5.0, "median": 2.0, "samples": [1.0, 5.0, 2.0]}
    assert summary([None, None]) is None
