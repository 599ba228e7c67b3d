"""Which drafts are made: repetitions against a plain search, lengths against simulated costs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.engine import drafts
from fourfold.engine.drafts import MOST, Lengths, Odds, Repetition, Wish


def plain_search(ids: list[int], most: int) -> list[int]:
    """The tokens after the last earlier place with the same three tokens; the text is continued by itself."""
    for start in range(len(ids) - 1, 2, -1):
        if ids[start - 3 : start] == ids[-3:]:
            longer = list(ids)
            for i in range(most):
                longer.append(longer[start + i])
            return longer[len(ids) :]
    return []


@given(first=st.lists(st.integers(0, 2), max_size=30), more=st.lists(st.lists(st.integers(0, 2), max_size=5)))
def test_repetitions_of_a_text_that_grows(first, more):
    own = Repetition(first)
    for part in more:
        first += part
        assert list(own.draft(7)) == plain_search(first, 7)


def test_a_repetition_is_found_without_reading_the_text_again(monkeypatch):
    """Each token is looked at once, and only those in reach."""
    monkeypatch.setattr(drafts, "_REACH", 100)
    own = Repetition(ids := list(range(1000)) * 2)
    assert own.draft(2) == ()
    own = Repetition(ids := [*range(960), *range(900, 990), *range(950, 960)])
    assert own.draft(2) == (960, 961)
    ids.append(960)
    read = len(own._after)
    own.draft(1)
    assert len(own._after) <= read + 1


def test_odds_follow_what_happens():
    odds = Odds()
    for _ in range(100):
        odds.learn(4, 4)
    assert odds.each > 0.95
    for _ in range(100):
        odds.learn(4, 0)
    assert odds.each < 0.15
    assert odds.like().right / odds.like().all == odds.right / odds.all
    assert odds.like().each < odds.each


class Machine:
    """Steps of simulated cost: a step, each drafted token, each place that the MTP block guesses."""

    def __init__(self, *, step: float, token: float, guess: float, right: float, requests: int) -> None:
        self.costs = step, token, guess
        self.right, self.requests = right, requests
        self.lengths = Lengths()
        self.odds = [Odds() for _ in range(requests)]
        self.random = random.Random(1)
        self.seconds, self.tokens, self.drafted = 0.0, 0, 0
        self._next = [0] * requests

    def run(self, steps: int, *, free: bool = False) -> None:
        step, token, guess = self.costs
        for _ in range(steps):
            seconds = (step + token * sum(self._next)) * self.random.uniform(0.9, 1.1)
            before = self.tokens
            self.drafted += sum(self._next)
            for odds, length in zip(self.odds, self._next, strict=True):
                right = 0
                while right < length and self.random.random() < self.right:
                    right += 1
                if length:
                    odds.learn(length, right)
                self.tokens += 1 + right
            self.lengths.learn(self.requests, sum(self._next), seconds, self.tokens - before)
            wishes = [Wish(odds.each, MOST, free) for odds in self.odds]
            self._next = self.lengths.choose(self.requests, wishes)
            if any(self._next) and not free:
                places = max(self._next)
                self.lengths.learn_guessing(
                    self.requests, sum(n > 0 for n in self._next), places, guess * places
                )
                seconds += guess * places
            self.seconds += seconds

    @property
    def gain(self) -> float:
        """Against no drafts at all."""
        return self.tokens / self.requests * self.costs[0] / self.seconds


@pytest.mark.parametrize("requests", [1, 8])
def test_drafts_that_pay_are_made(requests):
    own = Machine(step=10.0, token=0.2, guess=0.5, right=0.8, requests=requests)
    own.run(500)
    assert own.gain > 1.6


@pytest.mark.parametrize("requests", [1, 8])
@pytest.mark.parametrize(("token", "guess", "right"), [(8.0, 1.0, 0.7), (0.5, 20.0, 0.9), (1.0, 1.0, 0.05)])
def test_drafts_that_do_not_pay_end_nearly_at_once_and_cost_nearly_nothing(requests, token, guess, right):
    own = Machine(step=10.0, token=token, guess=guess, right=right, requests=requests)
    own.run(3000)
    assert own.gain > 0.98
    assert own.drafted < 0.1 * 3000 * requests


def test_drafts_begin_again_when_they_pay_again():
    own = Machine(step=10.0, token=0.5, guess=0.5, right=0.02, requests=2)
    own.run(300)
    own.right, own.tokens, own.seconds = 0.9, 0, 0.0
    own.run(3000)
    assert own.gain > 1.5


def test_repetitions_are_judged_in_every_step_while_the_block_rests():
    own = Machine(step=10.0, token=0.5, guess=30.0, right=0.9, requests=1)
    own.run(200)
    assert not own.lengths.willing
    own.drafted = 0
    own.run(20, free=True)
    assert own.drafted > 50


def test_the_better_request_gets_the_longer_draft():
    own = Lengths()
    for _ in range(10):
        own.pace.learn(2, 0, 10.0)
        own.pace.learn(2, 4, 12.0)
        own.pace.learn(2, 16, 20.0)
    for _ in range(3):  # the first steps are plain, for comparison
        good, bad = own.choose(2, [Wish(0.9, MOST, True), Wish(0.2, MOST, True)])
    assert good > 3
    assert bad <= 1
