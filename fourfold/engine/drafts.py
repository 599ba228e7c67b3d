"""Which guesses are worth verifying: how often they were right, what steps cost, and guesses by repetition.

No tensors.  A draft never changes an answer, so nothing here has to be exact; it only has to pay.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

MOST = 8
"""The longest draft."""
_GRAM = 3
"""So many tokens that came before, in this order, are taken for a repetition."""
_REACH = 1 << 17
"""Tokens from the end in which repetitions are looked for: an index of 10 MB."""
_MEMORY = 32.0
"""Outcomes after which one counts a third of a new one."""
_SAMPLES = 16
"""Steps over which times are averaged."""
_MARGIN = 1.05
"""A gain below this is taken for noise."""
_LEAST = 4
"""Plain steps that must have been seen before drafts are made."""
_GUESSED_MORE, _GUESSED_PASS = 0.2, 0.2
"""Before anything is measured: a drafted token and a pass of the MTP block, as parts of a step."""
_REFRESH = 64
"""In so many steps two are plain, for the comparison to stay true."""
_IDLE, _REST = 4, 16
"""Each so many looks in a row that found no draft worth making let one step more go by until the next look,
up to so many: a look costs a small model a twentieth of a step."""
_TRIAL = 4
"""Steps of a trial."""
_ALLOWED = 0.005
"""The part of all time that may be lost by trials."""
_MOST_SAVED = 4.0
"""Steps; gains beyond them are no reason to lose later."""
_STRICTER = 0.05
"""For each lost step."""
_WORST = 2.0
"""Steps that a single one can lose."""
_FURTHER = 8
"""So many tokens beyond the best draft so far are looked at: several may pay for a pass of the MTP block."""
_UNLIKELY = 0.1
"""Tokens that come less often are not drafted whatever they cost."""


class Repetition:
    """Finds what followed the last time that a text ended as it does now."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids
        self._after: dict[tuple[int, ...], int] = {}
        self._known = max(0, len(ids) - _REACH)

    def draft(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may follow; where the earlier place runs into the end, they repeat."""
        ids = self._ids
        for end in range(max(self._known, _GRAM), len(ids)):
            self._after[tuple(ids[end - _GRAM : end])] = end
        self._known = max(self._known, len(ids))
        start = self._after.get(tuple(ids[-_GRAM:]))
        if start is None:
            return ()
        period = len(ids) - start
        return tuple(ids[start + i % period] for i in range(most))


@dataclass
class Odds:
    """How likely the next token of a draft is right if those before it are; newer outcomes count more.

    One outcome more is taken to be wrong: the less is known, the less is promised.
    """

    right: float = 1.0
    all: float = 1.0

    @property
    def each(self) -> float:
        return self.right / (self.all + 1)

    def learn(self, drafted: int, accepted: int) -> None:
        """Of `drafted` tokens the first `accepted` were right; what follows a wrong one says nothing."""
        seen = min(drafted, accepted + 1)
        fade = 0.5 ** (seen / _MEMORY)
        self.right = self.right * fade + accepted
        self.all = self.all * fade + seen

    def like(self) -> Odds:
        """The same to begin with, soon overruled."""
        return Odds(4 * self.right / self.all, 4.0)


@dataclass
class Mean:
    """Of the last values, newer ones counting more."""

    value: float = 0.0
    count: int = 0

    def learn(self, value: float) -> None:
        if self.count >= 4:
            value = min(value, 3 * self.value)  # the machine was busy with something else
        self.count = min(self.count + 1, _SAMPLES)
        self.value += (value - self.value) / self.count


class Pace:
    """What steps cost: seconds by the number of requests and of tokens drafted for all of them.

    Of steps without drafts the shortest counts: they come rarely where drafts pay, and then find nothing in
    the processor's caches.  Taken for dearer than they are they would make every draft look like a gain.
    """

    def __init__(self) -> None:
        self.looking = Mean()
        """Seconds in which drafts of a step are chosen."""
        self._plain: dict[int, deque[float]] = {}
        self._steps: dict[int, dict[int, Mean]] = {}
        self._guesses: dict[int, Mean] = {}
        self._more = Mean(_GUESSED_MORE, 1)
        """How much longer one drafted token a request makes a step, as a part of it."""

    def learn(self, requests: int, drafted: int, seconds: float) -> None:
        """Of a step without prompts."""
        if not drafted:
            self._plain.setdefault(requests, deque(maxlen=_SAMPLES)).append(seconds)
            return
        if requests in self._plain:
            self._more.learn(max(0.0, seconds / self.plain(requests) - 1) * requests / drafted)
        self._steps.setdefault(requests, {}).setdefault(_bucket(drafted), Mean()).learn(seconds)

    def learn_guessing(self, requests: int, places: int, seconds: float) -> None:
        """Of asking the MTP block, the longest draft having so many places."""
        self._guesses.setdefault(requests, Mean()).learn(seconds / places)

    def known(self, requests: int) -> bool:
        """Whether enough plain steps of so many requests were seen."""
        return len(self._plain.get(requests, ())) >= _LEAST

    def plain(self, requests: int) -> float:
        """Seconds of a step without drafts."""
        return min(self._plain[requests])

    def drafting(self, requests: int) -> Callable[[int], float]:
        """Tokens drafted for so many requests -> seconds of a step, between measured ones on a line."""
        known, plain = self._steps.get(requests, {}), self.plain(requests)
        sizes = [0, *sorted(known)]
        values = [plain, *(known[size].value for size in sizes[1:])]
        more = plain * self._more.value / requests

        def seconds(drafted: int) -> float:
            at = _bucket(drafted)
            i = bisect_left(sizes, at)
            if i == len(sizes):
                return values[-1] + more * (at - sizes[-1])
            if sizes[i] == at:
                return values[i]
            slope = (values[i] - values[i - 1]) / (sizes[i] - sizes[i - 1])
            return values[i - 1] + slope * (at - sizes[i - 1])

        return seconds

    def guessing(self, requests: int, asked: int) -> float:
        """Seconds of a pass of the MTP block for `asked` of the requests."""
        if not self._guesses:
            return self.plain(requests) * _GUESSED_PASS
        return self._guesses[min(self._guesses, key=lambda count: abs(count - asked))].value


def _bucket(drafted: int) -> int:
    """Single numbers up to 16, then steps of an 8th."""
    step = 1 << max(0, drafted.bit_length() - 4)
    return drafted // step * step


@dataclass
class Wish:
    """A request that a draft could be made for: how likely its tokens are right, and how many may come.

    free: the guesses are there already; others take a pass of the MTP block for each place in the draft.
    """

    each: float
    most: int
    free: bool


@dataclass
class Account:
    """What drafts of one kind have gained, in steps without drafts; an allowance comes with every step.

    Below 0 they must promise the more, so that promises that are never kept come to an end.
    """

    balance: float = 0.0

    def add(self, gained: float) -> None:
        self.balance = min(self.balance + gained, _MOST_SAVED)

    @property
    def margin(self) -> float:
        """How many times the tokens without drafts the next ones must promise."""
        return _MARGIN + _STRICTER * max(0.0, -self.balance)


@dataclass
class Lengths:
    """Decides how long drafts are, from measured times and odds; 0 where that pays.

    Drafts of the MTP block that promise nothing are tried again when the allowance has paid for the last
    trial, which bounds what they can cost to that part of the time, whatever the model and the text.
    """

    pace: Pace = field(default_factory=Pace)
    asking: bool = False
    """Whether the MTP block guesses for the next step."""
    _free: Account = field(default_factory=Account)
    _asked: Account = field(default_factory=Account)
    _trial: int = 0
    _steps: int = 0
    _idle: int = 0
    _rested: int = 0

    @property
    def willing(self) -> bool:
        """Whether the MTP block may be asked next time."""
        return self.asking or self._asked.balance >= 0

    def learn(self, requests: int, drafted: int, seconds: float, tokens: int) -> None:
        """A step without prompts took so long and gave so many tokens."""
        if drafted and self.pace.known(requests):
            spent = seconds + self.pace.looking.value
            gained = tokens / requests - spent / self.pace.plain(requests)
            # A machine that was busy with something else is no draft's fault.
            (self._asked if self.asking else self._free).add(max(gained, -_WORST))
        for account in (self._free, self._asked):
            account.add(_ALLOWED)
        self.pace.learn(requests, drafted, seconds)

    def learn_guessing(self, requests: int, asked: int, places: int, seconds: float) -> None:
        """Asking the MTP block took so long."""
        if self.pace.known(requests):
            self._asked.add(-min(seconds / self.pace.plain(requests), _WORST))
        self.pace.learn_guessing(asked, places, seconds)

    def rest(self) -> bool:
        """Whether the next step is one of those that go without a look."""
        if self._trial or self.asking or self._rested >= min(self._idle // _IDLE, _REST):
            self._rested = 0
            return False
        self._rested += 1
        return True

    def choose(self, requests: int, wishes: Sequence[Wish]) -> list[int]:
        """The length for each wish.  requests: that take part in the step, with or without a wish."""
        lengths = self._choose(requests, wishes)
        self._idle = 0 if any(lengths) else self._idle + 1
        return lengths

    def _choose(self, requests: int, wishes: Sequence[Wish]) -> list[int]:
        self._steps += 1
        self.asking = False
        none = [0] * len(wishes)
        if not self.pace.known(requests) or self._steps % _REFRESH < 2:
            return none
        if any(wish.most for wish in wishes if not wish.free):
            lengths = self._best(requests, wishes, self._asked.margin)
            if self._trial == 0 and self._asked.balance >= 0 and not any(lengths):
                self._trial = _TRIAL
            if self._trial and not any(lengths):
                self._trial -= 1
                lengths = self._best(requests, wishes, 0.0)
            self.asking = any(length for length, wish in zip(lengths, wishes, strict=True) if not wish.free)
            if self.asking:
                return lengths
        free = [wish if wish.free else replace(wish, most=0) for wish in wishes]
        return self._best(requests, free, self._free.margin)

    def _best(self, requests: int, wishes: Sequence[Wish], least: float) -> list[int]:
        """The lengths that promise most tokens a second, and `least` times as many as without drafts."""
        places = [
            (likely, i, n)
            for i, wish in enumerate(wishes)
            for n in range(1, wish.most + 1)
            if (likely := wish.each**n) > _UNLIKELY or (n == 1 and least == 0.0)
        ]
        places.sort(key=lambda place: (-place[0], place[2]))
        step, looking = self.pace.drafting(requests), self.pace.looking.value
        best = least * requests / self.pace.plain(requests)
        tokens, taken, depth = float(requests), 0, 0
        asked: set[int] = set()
        for drafted, (likely, i, n) in enumerate(places, start=1):
            if drafted > taken + _FURTHER:
                break
            tokens += likely
            seconds = step(drafted) + looking
            if not wishes[i].free:
                depth = max(depth, n)
                asked.add(i)
            if asked:
                seconds += depth * self.pace.guessing(requests, len(asked))
            if tokens / seconds > best:
                best, taken = tokens / seconds, drafted
        lengths = [0] * len(wishes)
        for _, i, n in places[:taken]:
            lengths[i] = n
        return lengths
