"""Run by test_emulated.py, and on the pure-Python npu by python_model.py: the engine's promise, on npu."""

from __future__ import annotations

from pathlib import Path

import pytest

import fourfold
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from tests.engine.test_exact import Subject, Witness, always, check_alone, limited, witness, words

__all__ = ["always", "test_a_request_gets_what_it_gets_alone", "tiny", "witness"]


@pytest.fixture
def tiny(tiny_folder: Path) -> Subject:
    return Subject(fourfold.load(tiny_folder, device="npu"))


@pytest.mark.usefixtures("always")
def test_a_request_gets_what_it_gets_alone(tiny: Subject, witness: Witness) -> None:
    """Beside another, with drafts, and preempted in the middle of its answer by a more important one."""
    low = [Request(prompt=words(20, i), max_tokens=4, sampling=Sampling(seed=i)) for i in (1, 2)]
    high = Request(prompt=words(9, 3), max_tokens=2, priority=1, sampling=Sampling(seed=3))
    with limited(tiny.model, 8, draft="mtp", max_running=2, snapshots=0, saved_memory=1 << 30) as own:
        answers = [own.submit(request) for request in low]
        while not all(answer.ids for answer in answers):
            own.step()
        list(own.stream(high))
        got = [[token for chunk in own.chunks(answer) for token in chunk.ids] for answer in answers]
        assert own.stats().counters.preempted >= 1
    for request, ids in zip(low, got, strict=True):
        check_alone(tiny.model, witness, list(request.prompt), request.sampling, ids)
