"""What requests ask for beside their text: several choices, ends, log probabilities."""

from __future__ import annotations

import pytest
import torch

import fourfold
from fourfold.engine.config import EngineConfig
from fourfold.engine.engine import Engine
from fourfold.engine.logprobs import token_logprob
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling, sample
from fourfold.errors import RequestError
from fourfold.kernels import cpu
from tests.engine.test_engine import GREEDY, engine, ids_of, is_empty, oracle


def texts(own, answer) -> list[list[int]]:
    """Ids of every choice, from its chunks."""
    found: list[list[int]] = [[] for _ in answer.choices]
    for chunk in own.chunks(answer):
        found[chunk.index] += chunk.ids
    return found


@pytest.mark.parametrize("length", [5, 30, 200])
@pytest.mark.parametrize("snapshots", [0, 8])
def test_choices_share_their_prompt_and_are_what_each_would_be_alone(stub, length, snapshots):
    prompt = [20 + i % 70 for i in range(length)]
    sampling = Sampling(seed=5)
    with engine(stub, snapshots=snapshots) as own:
        answer = own.submit(Request(prompt=prompt, max_tokens=6, n=4, sampling=sampling))
        found = texts(own, answer)
        assert found == [oracle(stub, prompt, sampling.derived(i), 6) for i in range(4)]
        assert found[0] == ids_of(own.stream(Request(prompt=prompt, max_tokens=6, sampling=sampling)))
        assert len({tuple(ids) for ids in found}) == 4
        assert [choice.ids for choice in answer.choices] == found
        assert is_empty(own)
    if snapshots and length >= 30:
        answers = sum(len(ids) for ids in found) + 4
        assert sum(stub.calls) <= length + answers + 4 + 6 + 1  # the prompt once, and its last token each


def test_more_choices_than_run_at_once(stub):
    with engine(stub, running=2) as own:
        answer = own.submit(Request(prompt=[20] * 30, max_tokens=5, n=7, sampling=Sampling(seed=1)))
        assert texts(own, answer) == [
            oracle(stub, [20] * 30, Sampling(seed=1).derived(i), 5) for i in range(7)
        ]


def test_leaving_or_failing_ends_all_choices(stub):
    with engine(stub) as own:
        chunks = own.stream(Request(prompt=[20] * 9, n=3, sampling=Sampling(seed=1)))
        next(chunks)
        chunks.close()
        assert is_empty(own)
        stub.poison = {66}
        answer = own.submit(Request(prompt=[20, 66], n=3, max_tokens=5))
        with pytest.raises(RuntimeError, match="melted"):
            list(own.chunks(answer))
        assert is_empty(own)


def test_a_stop_token_ends_and_is_not_part_of_it(stub):
    with engine(stub) as own:
        all_of_it = oracle(stub, [20] * 9, GREEDY, 20)
        stop = all_of_it[7]
        at = all_of_it.index(stop)
        answer = own.submit(Request(prompt=[20] * 9, max_tokens=20, sampling=GREEDY, stop_tokens=[stop, 399]))
        last = list(own.chunks(answer))[-1]
        assert answer.ids == all_of_it[:at]
        assert (last.ids, last.finish_reason, last.stop_reason) == ((), "stop", stop)


def test_a_stop_string_says_which(stub):
    stub.script = {9 + i: token for i, token in enumerate(stub.tokenizer.encode("abcdef"))}
    with engine(stub) as own:
        request = Request(prompt=[20] * 9, max_tokens=50, sampling=GREEDY, stop=["xyz", "cd"])
        chunks = list(own.stream(request))
    assert "".join(chunk.text for chunk in chunks) == "ab"
    assert (chunks[-1].finish_reason, chunks[-1].stop_reason) == ("stop", "cd")


def test_the_end_of_sentence_ends_ignored_or_comes_later(stub):
    stub.script = {12: 1, 15: 1}
    with engine(stub) as own:
        ask = lambda **more: own.submit(  # noqa: E731
            Request(prompt=[20] * 9, max_tokens=10, sampling=GREEDY, **more)
        )
        plain, ignoring, later = ask(), ask(ignore_eos=True), ask(min_tokens=4)
        for answer in (plain, ignoring, later):
            list(own.chunks(answer))
        assert (len(plain.ids), plain.finish_reason) == (3, "stop")
        assert (len(ignoring.ids), ignoring.ids[3], ignoring.finish_reason) == (10, 1, "length")
        assert (len(later.ids), later.finish_reason) == (6, "stop")
        assert 1 not in later.ids


def test_a_stop_string_among_the_first_min_tokens_is_text(stub):
    stub.script = {9 + i: token for i, token in enumerate(stub.tokenizer.encode("abcabcabc"))}
    with engine(stub) as own:
        count = len(stub.tokenizer.encode("abcabc"))
        request = Request(prompt=[20] * 9, max_tokens=50, sampling=GREEDY, stop="abc", min_tokens=count)
        assert "".join(chunk.text for chunk in own.stream(request)) == "abcabc"


def test_logprobs_are_of_the_models_own_distribution(stub):
    """Neither temperature nor penalties nor biases show in them."""
    sampling = Sampling(temperature=0.3, seed=2, frequency_penalty=1.0, logit_bias={30: 20.0})
    with engine(stub) as own:
        chunks = list(own.stream(Request(prompt=[20] * 9, max_tokens=8, sampling=sampling, logprobs=3)))
    ids = ids_of(chunks)
    assert 30 in ids
    got = [logprob for chunk in chunks for logprob in chunk.logprobs]
    assert got == [token_logprob(stub.row((*[20] * 9, *ids[:i])), ids[i], 3) for i in range(len(ids))]


@pytest.mark.parametrize("blocks", [100, 14])
def test_logprobs_of_a_prompt(stub, blocks):
    """Whole, in chunks, cached before, preempted and computed again: the same."""
    prompt = [20 + i * i % 70 for i in range(60)]
    expected = [None, *(token_logprob(stub.row(tuple(prompt[:i])), prompt[i], 2) for i in range(1, 60))]
    with engine(stub, blocks, step=10, running=3, saved_memory=0) as own:
        list(own.stream(Request(prompt=prompt, max_tokens=2, sampling=GREEDY)))
        other = own.submit(Request(prompt=[21] * 40, max_tokens=30, sampling=GREEDY, priority=1))
        scored = Request(prompt=prompt, max_tokens=3, n=2, sampling=Sampling(seed=4), prompt_logprobs=2)
        answer = own.submit(scored)
        found = texts(own, answer)
        list(own.chunks(other))
        assert answer.prompt_logprobs == expected
        assert answer.cached_tokens == 0
        assert found == [oracle(stub, prompt, Sampling(seed=4).derived(i), 3) for i in range(2)]
        only = own.submit(Request(prompt=prompt, max_tokens=0, prompt_logprobs=2))
        assert [chunk.finish_reason for chunk in own.chunks(only)] == ["length"]
        assert only.prompt_logprobs == expected
        assert is_empty(own)


def test_penalties_see_what_was_generated_and_not_who_else_runs(stub):
    sampling = Sampling(temperature=0.0, frequency_penalty=2.0, repetition_penalty=1.5)
    with engine(stub) as own:
        stub.row = lambda ids: torch.linspace(0, 1, 400)  # says 399 for ever
        got = ids_of(own.stream(Request(prompt=[399, 20], max_tokens=6, sampling=GREEDY)))
        assert got == [399] * 6
        got = ids_of(own.stream(Request(prompt=[399, 20], max_tokens=6, sampling=sampling)))
        assert got == [398, 397, 396, 395, 394, 393]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "n is 0; allowed: a whole number from 1 to 128"),
        ({"n": 129}, "n is 129; allowed"),
        ({"min_tokens": -1}, "min_tokens is -1; allowed"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens is 9; allowed: a whole number from 0 to max_tokens"),
        ({"stop_tokens": [True]}, "stop_tokens holds True; allowed"),
        ({"logprobs": 21}, "logprobs is 21; allowed: a whole number from 0 to 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs is -1; allowed"),
        ({"max_tokens": 0}, "max_tokens is 0; allowed: a whole number from 1 .0 with prompt_logprobs"),
        ({"stop_tokens": [400]}, "stop_tokens names token id 400; allowed: 0 to 399"),
        ({"sampling": Sampling(logit_bias={400: 1})}, "logit_bias names token id 400"),
    ],
)
def test_bad_requests_are_refused_at_once(stub, values, message):
    with engine(stub) as own, pytest.raises(RequestError, match=message):
        own.submit(Request(prompt=[20], **values))


def test_a_seeded_answer_is_the_same_whatever_runs_beside_it(stub):
    sampling = Sampling(seed=11, presence_penalty=1.0, top_k=5)
    with engine(stub) as own:
        alone = ids_of(own.stream(Request(prompt=[20] * 20, max_tokens=12, sampling=sampling)))
        beside = [own.submit(Request(prompt=[30 + i] * 20, n=2, max_tokens=20)) for i in range(3)]
        assert ids_of(own.stream(Request(prompt=[20] * 20, max_tokens=12, sampling=sampling))) == alone
        for answer in beside:
            own.cancel(answer)
        assert alone[0] == sample(stub.row((20,) * 20), sampling, 20)


def test_choices_and_prompt_logprobs_of_a_real_model(tiny_folder):
    """In one step or in many, shared or computed anew: with the native kernels the same bits."""
    model = fourfold.load(tiny_folder)
    prompt = [20 + i * i % 300 for i in range(150)]
    wanted = torch.log_softmax(model(torch.tensor([prompt])).logits[0].double(), dim=-1)
    request = Request(prompt=prompt, max_tokens=8, n=3, sampling=Sampling(seed=9), prompt_logprobs=1)
    found = []
    for step in (16, 512):
        with Engine(model, EngineConfig(max_running=4, step_tokens=step)) as own:
            answer = own.submit(request)
            shared = texts(own, answer)
            scores = [score.logprob for score in answer.prompt_logprobs if score is not None]
            assert scores == pytest.approx([float(wanted[i, t]) for i, t in enumerate(prompt[1:])], abs=1e-4)
            for i, ids in enumerate(shared):
                sampling = Sampling(seed=9).derived(i)
                alone = own.stream(Request(prompt=prompt, max_tokens=8, sampling=sampling))
                assert ids_of(alone) == ids
            found.append((scores, shared))
            assert own.stats().counters.cached_tokens >= 5 * 128
    if cpu.available():
        assert found[0] == found[1]
