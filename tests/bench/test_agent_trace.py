"""bench/agent_trace.py: sessions as agents send them, and what is found of their prefixes."""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import pytest

import fourfold
from bench.agent_session import Session
from bench.agent_trace import shared, throughput, trace
from bench.speculation import stories


@pytest.mark.parametrize("tools", [True, False])
def test_a_session_grows_to_its_context_and_edits_its_last_message(tools):
    tokenizer = fourfold.tokenizer(fourfold.shipped_model())
    turns = list(Session(tokenizer, " ".join(stories()).split(), 3, 16, 6000, tools=tools))
    lengths = [len(turn.prompt) for turn in turns]
    assert 3000 < lengths[-1] < 9000
    for i, (before, turn) in enumerate(itertools.pairwise(turns), start=1):
        history = [*before.prompt, *before.answer]
        edited = i % 7 == 6
        assert (turn.prompt[: len(history)] == history) == (tools and not edited)
        # Without tools the history comes back without the reasoning, up to the mark that it begins with.
        common = shared([], turn.prompt) if edited else shared([np.array(before.prompt)], turn.prompt)
        assert edited or common >= len(before.prompt) - 1
    assert all(turn.answer[-1] == 1 for turn in turns)


def test_nearly_everything_that_was_computed_is_found_again():
    model = fourfold.load(fourfold.shipped_model(), numerics="fast")
    options = argparse.Namespace(
        sessions=2, turns=5, context=1300, memory="256MiB", snapshots=64, draft="none", batches=[1, 2]
    )
    result = trace(model, options)
    assert result["requests"] == 10
    assert result["hit_rate"] >= 0.95
    assert result["first_token_seconds"]["p50"] > 0


def test_throughput_of_two_batch_sizes():
    model = fourfold.load(fourfold.shipped_model(), numerics="fast")
    options = argparse.Namespace(batches=[1, 2], prompt=16, tokens=4, rounds=1, memory="64MiB", compare=None)
    rows = throughput(model, options)["rows"]
    assert [row["batch"] for row in rows] == [1, 2]
    assert rows[0]["gain"] == 1.0
