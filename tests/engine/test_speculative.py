"""Drafts change how many steps an answer takes, and nothing else about it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import fourfold
from fourfold import ConfigError, Engine, EngineConfig, Request, RequestError, Sampling
from fourfold.engine.constraint import Constraint
from fourfold.engine.drafts import Lengths, Wish
from fourfold.engine.job import Job, Share
from fourfold.engine.masks import Stuck
from fourfold.engine.mtp_drafts import Writer
from fourfold.engine.sampler import distribution, sample
from tests.engine.conftest import StubModel
from tests.engine.test_engine import GREEDY, engine, ids_of, is_empty, oracle


class Oracle:
    """Instead of the engine's own: drafts of any length, right for any number of tokens, then not."""

    def __init__(self, own: Engine, stub: StubModel, seed: int = 0) -> None:
        self.engine, self.stub = own, stub
        self.random = random.Random(seed)

    def learn(self, shares: Sequence[Share], accepted: Mapping[Job, int], seconds: float) -> None:
        assert all(0 <= accepted.get(share.job, 0) <= len(share.drafts) for share in shares)

    def draft(self, writers: Sequence[Writer], streams: Tensor) -> None:
        for writer in writers:
            if writer.job.pending > 1:
                continue
            drafts: tuple[int, ...] = ()
            for _ in range(self.random.randrange(min(7, writer.most + 1))):
                row = self.stub.row((*writer.job.tokens.ids, *drafts))
                right = 99 not in drafts and self.random.random() < 0.8
                try:
                    drafts += (writer.choose(row, drafts) if right else 99,)
                except (RequestError, Stuck):
                    break  # the constraint has ended the answer
            writer.job.drafts = drafts


def with_oracle(own: Engine, stub: StubModel) -> Engine:
    own._speculator = Oracle(own, stub)  # type: ignore[assignment]
    return own


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_answers_in_fewer_steps(stub, temperature):
    """Side by side, with few blocks and snapshots: requests are preempted and prefixes found."""
    requests = [
        Request(
            prompt=[20, 21, 22 + i % 3] * (3 + i),
            max_tokens=25,
            sampling=Sampling(temperature=temperature, seed=i),
            priority=i % 2,
        )
        for i in range(7)
    ]
    with with_oracle(engine(stub, blocks=11, running=3, saved_memory=60), stub) as own:
        answers = [own.submit(request) for request in requests]
        for request, answer in zip(requests, answers, strict=True):
            assert ids_of(own.chunks(answer)) == oracle(stub, list(request.prompt), request.sampling, 25)
        counters = own.stats().counters
        assert counters.preempted > 0
        assert counters.accepted > 60
        assert is_empty(own)
        # The last answer, and a next turn: its prefix ends where the answer's last token was not computed.
        stub.calls.clear()
        longer = [*requests[6].prompt, *answers[6].ids, 30, 31]
        more = own.submit(Request(prompt=longer, max_tokens=4, sampling=GREEDY))
        assert ids_of(own.chunks(more)) == oracle(stub, longer, GREEDY, 4)
        assert more.cached_tokens == len(longer) - 3


def test_an_answer_that_ends_within_a_draft(stub):
    """At the end-of-sentence token, at a stop string, at max_tokens: what was drafted beyond is not said."""
    stub.script = {12: 40, 13: 41, 14: 1}
    with with_oracle(engine(stub), stub) as own:
        for _ in range(10):
            answer = own.submit(Request(prompt=[20] * 9, max_tokens=20, sampling=GREEDY))
            chunks = list(own.chunks(answer))
            assert chunks[-1].finish_reason == "stop"
            assert answer.ids == oracle(stub, [20] * 9, GREEDY, 20)
            assert answer.timing.decode_tokens == len(answer.ids)
        text = own.tokenizer.decode([40])
        stopped = own.submit(Request(prompt=[20] * 9, max_tokens=20, sampling=GREEDY, stop=text))
        assert ids_of(own.chunks(stopped))[-1] == 40
        short = own.submit(Request(prompt=[20] * 9, max_tokens=2, sampling=GREEDY))
        assert ids_of(own.chunks(short)) == answer.ids[:2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_penalties_masks_and_logprobs_are_those_without_drafts(stub, temperature):
    request = Request(
        prompt=[20, 21, 22] * 5,
        max_tokens=30,
        n=2,
        sampling=Sampling(
            temperature=temperature, seed=3, repetition_penalty=1.3, frequency_penalty=0.5, logit_bias={40: 2}
        ),
        logprobs=2,
        constraint=Constraint.regex("([a-f]{2,3} ){6,9}[0-9]{4}"),
    )
    said = []
    for drafting in (False, True):
        with engine(stub) as own:
            if drafting:
                with_oracle(own, stub)
            answer = own.submit(request)
            chunks = list(own.chunks(answer))
            said.append([[c for c in chunks if c.index == index] for index in range(2)])
    assert own.stats().counters.accepted > 10
    assert said[0] == said[1]


def test_a_draft_that_the_model_fails_on_is_nobodys_fault(stub):
    stub.poison = {99}
    with with_oracle(engine(stub), stub) as own:
        answers = [own.submit(Request(prompt=[20 + i] * 5, max_tokens=20, sampling=GREEDY)) for i in range(2)]
        for i, answer in enumerate(answers):
            assert ids_of(own.chunks(answer)) == oracle(stub, [20 + i] * 5, GREEDY, 20)


def test_repetitions_are_drafted_where_there_are_any(stub, monkeypatch):
    """A model that says the same ten words again and again, and one whose drafts are judged for free."""
    monkeypatch.setattr(Lengths, "choose", lambda self, requests, wishes: [wish.most for wish in wishes])
    words = list(range(30, 40))
    stub.script = {20 + i: words[i % 10] for i in range(80)}
    with engine(stub, draft="ngram") as own:
        answer = own.submit(Request(prompt=[20] * 20, max_tokens=80, sampling=GREEDY))
        assert ids_of(own.chunks(answer)) == (words * 8)[:80]
        assert len(stub.calls) < 35
        assert own.stats().counters.acceptance > 0.8


def test_what_a_draft_may_be(stub, tiny_folder):
    with pytest.raises(ConfigError, match=r"draft is 'eagle'; allowed: mtp, ngram, none"):
        EngineConfig(draft="eagle")
    stub.config.num_nextn_predict_layers = 0
    with pytest.raises(ConfigError, match="no MTP block"):
        engine(stub, draft="mtp")
    model = fourfold.load(tiny_folder)
    config = EngineConfig(max_running=2, draft="mtp", memory="64MiB")
    with Engine(model, config) as own:
        assert own._speculator is not None
        block = own._speculator._block
        assert block is not None
        account = config._fixed(model.cache_shape, model.draft_shape(8)) - config._fixed(model.cache_shape)
        assert block.cache.bytes == account


def test_drawn_answers_have_the_models_distribution(stub):
    """30,000 tokens from known probabilities, drafted from others: one that comes in 1 % of all cases too
    often is four standard deviations off."""
    said = torch.tensor([0.2, 0.2, 0.17, 0.13, 0.12, 0.1, 0.05, 0.03])
    rows, drafted = said.log().expand(6, -1), torch.full((8,), 1 / 8).log()
    stub.config.vocab_size, stub.config.eos_token_id = len(said), -1
    with engine(stub) as own:
        own._unusable = own._unusable[:0]
        answer = own.submit(Request(prompt=[0], max_tokens=700, sampling=Sampling(seed=7)))
        own._obey()
        (work,) = own._work_of.values()
        work.choice.limit = draws = 30_000
        while not answer.ended:
            drafts: tuple[int, ...] = ()
            for _ in range(5):
                drafts += (work.guess(drafted, drafts, position=len(answer.ids)),)
            work.say(rows, len(answer.ids), drafts)
    counts = Counter(answer.ids)
    for token, p in enumerate(said.tolist()):
        sigma = (p * (1 - p) / draws) ** 0.5
        assert 4 * sigma < 0.01
        assert abs(counts[token] / draws - p) < 4 * sigma


def test_a_draw_with_the_same_noise_agrees_nearly_as_often_as_can_be():
    """p and q can agree in s = sum min(p, q) of all cases; common noise reaches s / (2 - s) at least."""
    generator = torch.Generator().manual_seed(1)
    agreed = bound = best = 0.0
    draws = 4000
    for position in range(draws):
        p, q = torch.randn(2, 50, generator=generator) * 2
        q = p + 0.3 * q
        sampling = Sampling(seed=5)
        agreed += sample(p, sampling, position) == sample(q, sampling, position)
        most = float(torch.minimum(distribution(p, sampling), distribution(q, sampling)).sum())
        best += most
        bound += most / (2 - most)
    assert agreed > bound - 0.02 * draws
    assert agreed > 0.9 * best


def test_the_shipped_model_drafts_with_its_own_block(monkeypatch):
    """Greedy and drawn, two at once, with drafts in every step: the tokens of the plain engine."""

    def always(self: Any, requests: int, wishes: Sequence[Wish]) -> list[int]:
        return [min(wish.most, 3) for wish in wishes]

    monkeypatch.setattr(Lengths, "choose", always)
    model = fourfold.load(fourfold.shipped_model(), numerics="fast")
    said, steps = [], []
    for draft in ("none", "mtp"):
        with Engine(model, EngineConfig(max_running=2, memory="64MiB", draft=draft)) as own:
            answers = [
                own.submit(
                    Request(
                        prompt="Lily and her dog went to the park.",
                        max_tokens=50,
                        sampling=Sampling(temperature=temperature, seed=3),
                    )
                )
                for temperature in (0.0, 0.8)
            ]
            said.append([ids_of(own.chunks(answer)) for answer in answers])
            steps.append(own.stats().counters.steps)
    assert said[0] == said[1]
    assert steps[1] < 0.7 * steps[0]
