"""Stop strings: the same text however it is cut into pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.engine.stop import StopStrings
from fourfold.errors import RequestError


def run(pieces: list[str], stop: list[str]) -> tuple[str, str | None]:
    strings = StopStrings(stop)
    text = "".join(strings.push(piece) for piece in pieces)
    return text + strings.finish(), strings.hit


def test_text_before_the_stop_string_comes_out_and_it_does_not():
    assert run(["one two", " END of"], ["END"]) == ("one two ", "END")


def test_a_beginning_that_is_no_stop_string_is_not_lost():
    assert run(["EN", "D", "E"], ["ENDS"]) == ("ENDE", None)
    assert run(["a\n"], ["\n\n"]) == ("a\n", None)


def test_one_string_is_accepted_as_such():
    assert StopStrings("x").push("axb") == "a"


@given(
    text=st.text("ab", max_size=12),
    stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    cuts=st.data(),
)
def test_pieces_equal_whole(text, stop, cuts):
    at = sorted(cuts.draw(st.sets(st.integers(0, len(text)), max_size=4)) | {0, len(text)})
    pieces = [text[a:b] for a, b in pairwise(at)]
    shown, hit = run(pieces, stop)
    assert (shown, hit) == run([text], stop)
    assert (hit is None) == (not any(s in text for s in stop))
    assert text.startswith(shown)
    assert not any(s in shown for s in stop)


@pytest.mark.parametrize("stop", ["", ["a", ""], [1]])
def test_empty_strings_are_refused(stop):
    with pytest.raises(RequestError, match="allowed: strings that are not empty"):
        StopStrings(stop)
