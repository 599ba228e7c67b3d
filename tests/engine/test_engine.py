"""The engine on a stub model: who gets which tokens, what fails and for whom, what is freed."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourfold.engine.config import EngineConfig
from fourfold.engine.engine import Engine
from fourfold.engine.request import Request, boundaries
from fourfold.engine.sampler import Sampling, sample
from fourfold.errors import ConfigError, RequestError
from tests.engine.conftest import StubModel

GREEDY = Sampling(temperature=0.0)


def memory(blocks: int, running: int, snapshots: int, step: int) -> int:
    """Bytes for so many of the stub's blocks."""
    return 10 * (running + snapshots + 1) + step + 10 * blocks


def engine(
    stub: StubModel, blocks: int = 100, running: int = 4, snapshots: int = 8, step: int = 24, **more
) -> Engine:
    total = memory(blocks, running, snapshots, step)
    return Engine(
        stub, EngineConfig(max_running=running, snapshots=snapshots, step_tokens=step, memory=total, **more)
    )


def oracle(stub: StubModel, prompt: list[int], sampling: Sampling, most: int) -> list[int]:
    """What the model says, by the plainest loop."""
    ids: list[int] = []
    while len(ids) < most:
        token = sample(stub.row((*prompt, *ids)), sampling, position=len(prompt) + len(ids))
        if token == 1:
            break
        ids.append(token)
    return ids


def ids_of(chunks) -> list[int]:
    return [token for chunk in chunks for token in chunk.ids]


def is_empty(own: Engine) -> bool:
    stats = own.stats()
    return (
        stats.running == stats.waiting == stats.saved_bytes == 0
        and stats.blocks_free + stats.blocks_cached == stats.blocks
    )


REQUEST = st.tuples(
    st.lists(st.integers(20, 23), min_size=1, max_size=60),
    st.integers(1, 30),  # max_tokens
    st.sampled_from([0.0, 1.0]),
    st.integers(0, 2),  # priority
    st.integers(0, 30) | st.none(),  # leaves after so many tokens
    st.integers(0, 3),  # turns of the event loop before it comes
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(REQUEST, min_size=1, max_size=10),
    blocks=st.integers(12, 40),
    running=st.integers(1, 5),
    snapshots=st.integers(0, 6),
    saved=st.sampled_from([0, 60, 1000]),
)
def test_any_traffic_gets_what_each_would_get_alone(stub, requests, blocks, running, snapshots, saved):
    async def one(own: Engine, number: int) -> None:
        prompt, most, temperature, priority, leaves, turns = requests[number]
        await asyncio.sleep(0.001 * turns)
        sampling = Sampling(temperature=temperature, seed=number)
        request = Request(prompt=prompt, max_tokens=most, sampling=sampling, priority=priority)
        got: list[int] = []
        chunks = own.generate(request)
        async for chunk in chunks:
            got += chunk.ids
            if leaves is not None and len(got) >= leaves:
                break
        await chunks.aclose()
        expected = oracle(stub, prompt, sampling, most)
        assert got == (expected if leaves is None else expected[: max(leaves, 1)])

    async def all_of_them(own: Engine) -> None:
        await asyncio.gather(*(one(own, number) for number in range(len(requests))))

    with engine(
        stub, blocks, running, snapshots, 2 * running + 5, saved_memory=saved, snapshot_every=16
    ) as own:
        asyncio.run(all_of_them(own))
        own.step()  # the last cancellation
        assert is_empty(own)


def test_the_same_from_threads(stub):
    prompts = [[20 + i, 30, 40] * 5 for i in range(6)]
    with engine(stub) as own, ThreadPoolExecutor(6) as threads:
        ask = lambda prompt: ids_of(own.stream(Request(prompt=prompt, max_tokens=9, sampling=GREEDY)))  # noqa: E731
        assert list(threads.map(ask, prompts)) == [oracle(stub, p, GREEDY, 9) for p in prompts]


def test_requests_join_a_running_batch_and_share_its_steps(stub):
    with engine(stub) as own:
        first = own.stream(Request(prompt=[20] * 10, max_tokens=40, sampling=GREEDY))
        next(first)
        second = own.stream(Request(prompt=[30] * 10, max_tokens=3, sampling=GREEDY))
        list(second)
        assert 11 in stub.calls  # one prompt of ten and one decoded token
        assert stub.calls.count(2) == 2


def test_a_conversation_computes_only_what_is_new(stub):
    with engine(stub) as own:
        prompt = [20 + i % 50 for i in range(50)]
        answer = own.submit(Request(prompt=prompt, max_tokens=10, sampling=GREEDY))
        said = ids_of(own.chunks(answer))
        assert answer.cached_tokens == 0
        longer = [*prompt, *said, 60, 61, 62]
        stub.calls.clear()
        more = own.submit(Request(prompt=longer, max_tokens=5, sampling=GREEDY))
        assert ids_of(own.chunks(more)) == oracle(stub, longer, GREEDY, 5)
        assert more.cached_tokens == 59  # the answer's last token was sampled, not computed
        assert sum(stub.calls) == 4 + 4
        assert more.timing.prefill_tokens == 4


def test_an_error_ends_the_request_that_causes_it(stub):
    """A prompt that the model fails on joins two others in one step."""
    stub.poison = {99}
    prompts = [[20] * 9, [99] * 5, [30] * 20]
    with engine(stub, step=40) as own:
        answers = [own.submit(Request(prompt=p, max_tokens=6, sampling=GREEDY)) for p in prompts]
        assert ids_of(own.chunks(answers[0])) == oracle(stub, prompts[0], GREEDY, 6)
        with pytest.raises(RuntimeError, match="melted"):
            list(own.chunks(answers[1]))
        assert ids_of(own.chunks(answers[2])) == oracle(stub, prompts[2], GREEDY, 6)
        assert is_empty(own)


def test_logits_that_are_no_numbers_end_one_request(stub, monkeypatch):
    plain = stub.row
    monkeypatch.setattr(
        stub, "row", lambda ids: torch.full((400,), float("nan")) if ids[0] == 66 else plain(ids)
    )
    with engine(stub) as own:
        bad = own.submit(Request(prompt=[66, 67], max_tokens=5, sampling=GREEDY))
        good = own.submit(Request(prompt=[20, 21], max_tokens=5, sampling=GREEDY))
        assert len(ids_of(own.chunks(good))) == 5
        with pytest.raises(RequestError, match="computed no answer"):
            list(own.chunks(bad))
        assert is_empty(own)


def test_a_failure_of_the_engine_itself_hangs_nobody_and_is_survived(stub, monkeypatch):
    with engine(stub) as own:
        answers = [own.submit(Request(prompt=[20 + i], max_tokens=5, sampling=GREEDY)) for i in range(2)]
        with monkeypatch.context() as broken:
            broken.setattr(own._runner.cache, "commit", lambda *_: 1 / 0)
            for answer in answers:
                with pytest.raises(ZeroDivisionError):
                    list(own.chunks(answer))
        assert is_empty(own)
        assert len(ids_of(own.stream(Request(prompt=[25], max_tokens=4, sampling=GREEDY)))) == 4


def test_leaving_frees_everything_at_once(stub):
    with engine(stub, snapshots=0) as own:
        chunks = own.stream(Request(prompt=[20] * 30, max_tokens=50, sampling=GREEDY))
        next(chunks)
        assert own.stats().running == 1
        chunks.close()
        assert is_empty(own)
        assert own.stats().blocks_free == own.stats().blocks


def test_cancelling_while_it_waits_and_twice(stub):
    with engine(stub, running=1) as own:
        first = own.stream(Request(prompt=[20] * 5, max_tokens=50, sampling=GREEDY))
        next(first)
        waiting = own.submit(Request(prompt=[30] * 5, max_tokens=5))
        next(first)
        assert own.stats().waiting == 1
        own.cancel(waiting, wait=True)
        own.cancel(waiting, wait=True)
        assert own.stats().waiting == 0
        assert list(own.chunks(waiting)) == []
        assert waiting.finish_reason is None


def test_a_cancelled_task_does_not_disturb_the_step_of_others(stub):
    async def main(own: Engine) -> list[int]:
        async def read(prompt: list[int]) -> list[int]:
            return [
                t
                async for c in own.generate(Request(prompt=prompt, max_tokens=20, sampling=GREEDY))
                for t in c.ids
            ]

        stays, goes = asyncio.create_task(read([20] * 9)), asyncio.create_task(read([30] * 9))
        await asyncio.sleep(0.01)
        goes.cancel()
        return await stays

    with engine(stub) as own:
        assert asyncio.run(main(own)) == oracle(stub, [20] * 9, GREEDY, 20)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": []}, "no tokens"),
        ({"prompt": [400]}, "token id 400 is not in the vocabulary"),
        ({"prompt": [20], "max_tokens": 0}, "max_tokens is 0; allowed"),
        ({"prompt": [20], "priority": 1.5}, "priority is 1.5; allowed"),
        ({"prompt": [20] * 1001}, "1,001 tokens; this model has positions for 1,000"),
        ({"prompt": [20], "stop": [""]}, "stop holds ''"),
        (
            {"prompt": [20] * 70, "max_tokens": 30},
            "prompt has 70 tokens and max_tokens is 30; allowed: 80 together",
        ),
        ({"prompt": [20] * 90}, "prompt has 90 tokens and max_tokens is None; allowed: 80 together"),
    ],
)
def test_what_can_never_be_served_is_refused_at_once(stub, values, message):
    with engine(stub, blocks=10) as own, pytest.raises(RequestError, match=message):
        own.stream(Request(**values))
    assert stub.calls == []


def test_without_max_tokens_an_answer_goes_as_far_as_fits(stub):
    with engine(stub, blocks=10) as own:
        answer = own.submit(Request(prompt=[20] * 70, sampling=GREEDY))
        assert len(ids_of(own.chunks(answer))) == 80 - 70 + 1
        assert answer.finish_reason == "length"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_running": 0}, "max_running is 0; allowed: a whole number from 1"),
        ({"step_tokens": 63}, "step_tokens is 63; allowed: a whole number from 64"),
        ({"snapshots": -1}, "snapshots is -1"),
        ({"snapshot_every": True}, "snapshot_every is True"),
    ],
)
def test_bad_limits(values, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**values)


def test_too_little_memory_says_what_is_needed(stub):
    with pytest.raises(ConfigError, match=r"memory is 10 B; allowed: 1\.5 KiB and more"):
        Engine(stub, EngineConfig(memory=10))


def test_where_a_later_prompt_may_branch_off():
    user, assistant, think, end = 3, 4, 5, 1
    special = frozenset((0, user, assistant, think, end))
    first = [0, *[20] * 30, user, *[30] * 30, assistant, think]
    assert boundaries(first, special) == {len(first) - 1, 32}
    turn = [*first[:-1], *[40] * 5, end, user, *[50] * 9, assistant, think]
    assert boundaries(turn, special) == {len(turn) - 1, len(turn) - 11}
    assert boundaries([0, 20], special) == set()


def test_closing_ends_the_thread(stub):
    own = engine(stub)
    chunks = own.stream(Request(prompt=[20], max_tokens=50))
    next(chunks)
    own.close()
    with pytest.raises(RequestError, match="the engine is closed"):
        list(chunks)
    assert not any(
        thread.name.startswith("fourfold-engine") for thread in threading.enumerate() if thread.is_alive()
    )
