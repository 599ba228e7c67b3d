"""Drafts of the MTP block from a paged draft cache are the guesses of the plain model."""

from __future__ import annotations

import pytest
import torch

from fourfold.model.paged_layout import Span
from tests.model.conftest import TINY, build, tokens
from tests.model.test_paged import assert_same

DRAFTS = 3


@pytest.mark.parametrize("numerics", ["exact", "deployed", "fast"])
def test_the_guesses_of_the_plain_model_whatever_was_guessed_between(numerics: str) -> None:
    """Two texts in chunks of any size; between them guesses go on, and are replaced by what came."""
    model = build(TINY, numerics)
    texts = tokens(60, batch=2)
    plain = [model(row[None], mtp=True, cache=model.new_cache()).mtp_logits[0] for row in texts]
    main = model.new_paged_cache(slots=2, blocks=2, call_tokens=60)
    drafts = model.new_draft_cache(slots=2, drafts=DRAFTS, call_tokens=60)
    for slot in range(2):
        main.assign(slot, [slot])
    past = [0, 0]
    for lengths in ([9, 4], [1, 1], [20, 2], [1, 12], [3, 1]):
        spans = [Span(slot, past[slot], new) for slot, new in enumerate(lengths)]
        places = [range(past[slot], past[slot] + new) for slot, new in enumerate(lengths)]
        streams = model.paged_streams(
            torch.cat([texts[slot][list(here)] for slot, here in enumerate(places)]), spans, main
        )
        main.commit()
        following = torch.cat([texts[slot][[p + 1 for p in here]] for slot, here in enumerate(places)])
        out = model.guess(streams, following, spans, drafts)
        drafts.commit()
        for slot, part in enumerate(out.split(lengths, dim=1)):
            assert_same(model.guess_logits(part)[0], plain[slot][list(places[slot])])
            past[slot] += lengths[slot]
        last = out[:, [lengths[0] - 1, -1]]
        for further in range(DRAFTS):
            spans = [Span(slot, past[slot] + further, 1) for slot in range(2)]
            last = model.guess(last, tokens(2)[0], spans, drafts)
            drafts.commit()


def test_where_a_sequence_is_joined_makes_no_difference_to_positions() -> None:
    """RoPE is relative: with the whole window in view, the guesses are those from any start."""
    model = build(TINY)
    text = tokens(40)[0]
    plain = model(text[None], mtp=True).mtp_logits[0]
    main = model.new_paged_cache(slots=1, blocks=1, call_tokens=40)
    main.assign(0, [0])
    streams = model.paged_streams(text, [Span(0, 0, 40)], main)
    drafts = model.new_draft_cache(slots=1, drafts=DRAFTS, call_tokens=40)
    start, window = 15, TINY.sliding_window
    out = model.guess(streams[:, start:39], text[start + 1 :], [Span(0, 0, 24)], drafts)
    got = model.guess_logits(out)[0]
    assert torch.allclose(got[window:], plain[start + window :], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(got[0], plain[start], rtol=1e-3, atol=1e-3)
