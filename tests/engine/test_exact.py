"""The acceptance test: whatever happens around it, a request gets the logits and tokens it gets alone.

Generated conversations run at once on a small engine, where prefixes are found, requests are preempted and
snapshots evicted; a plain loop over the model with a cache of its own says what is right.  With the native
CPU kernels every bit of the logits is compared; the reference promises float32 rounding only.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fourfold
from fourfold.engine import work as module
from fourfold.engine.config import EngineConfig
from fourfold.engine.drafts import MOST, Lengths
from fourfold.engine.engine import Engine
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling, sample
from fourfold.kernels import cpu
from fourfold.model.transformer import Transformer
from fourfold.protocol import Chat


@dataclass
class Witness:
    """Calls of `sample`: seed and position -> the logits that it saw last, the model's after a draft's."""

    seen: dict[tuple[int | None, int], Tensor] = field(default_factory=dict, repr=False)

    def sample(self, logits: Tensor, sampling: Sampling, position: int) -> int:
        self.seen[sampling.seed, position] = logits.clone()
        return sample(logits, sampling, position)


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch) -> Witness:
    own = Witness()
    monkeypatch.setattr(module, "sample", own.sample)
    return own


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts in every step, of lengths that change."""
    lengths = itertools.cycle([1, 3, 2, 5])
    monkeypatch.setattr(Lengths, "choose", lambda *args: [min(wish.most, next(lengths)) for wish in args[-1]])


@dataclass(frozen=True)
class Subject:
    """A model, without the novel that it prints when a test fails."""

    model: Transformer = field(repr=False)


def check_alone(
    model: Transformer, witness: Witness, prompt: list[int], sampling: Sampling, got: list[int]
) -> None:
    """The prompt at once, then token by token: the same logits, and from them the same tokens."""
    cache = model.new_cache()
    fed = prompt
    for i, token in enumerate([*got, None]):
        position = len(prompt) + i
        if (sampling.seed, position) not in witness.seen:
            assert token is None  # it ended at max_tokens
            return
        ids = torch.tensor([fed], device=model.device)
        logits = model(ids, cache=cache, logits="last").logits[0, -1].cpu()
        seen = witness.seen[sampling.seed, position].cpu()
        if model.device.type == "cpu" and cpu.available():
            assert torch.equal(seen, logits)
            chosen = sample(logits, sampling, position)
            assert chosen == (model.config.eos_token_id if token is None else token)
        else:
            assert float((seen - logits).abs().max() / logits.std()) < 1e-4
        if token is not None:
            fed = [token]


def limited(model: Transformer, blocks: int, **values: Any) -> Engine:
    """An engine with so many blocks."""
    config = EngineConfig(**values)
    drafting = None if config.draft == "none" else model.draft_shape(MOST)
    total = config._fixed(model.cache_shape, drafting) + blocks * model.cache_shape.block_bytes
    return Engine(model, EngineConfig(**values, memory=total))


TURN = st.tuples(
    st.sampled_from(["message", "message", "edited", "tool", "again"]),
    st.integers(1, 30),  # tokens of the message
    st.integers(1, 10),  # max_tokens
    st.booleans(),  # thinking: the last mark of the prompt, and the answer's reasoning, are not kept
)
TALK = st.tuples(st.sampled_from([3, 40, 140]), st.lists(TURN, min_size=1, max_size=4))


@pytest.fixture(scope="module", params=["exact", "fast", "deployed", "fast published", "deployed published"])
def tiny(request: pytest.FixtureRequest, tiny_folder) -> Subject:
    numerics, _, kv = request.param.partition(" ")
    return Subject(fourfold.load(tiny_folder, numerics=numerics, kv=kv or None))


def words(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, 400, (count,), generator=generator).tolist()


class Talk:
    """A conversation as ids: what an agent sends next, from what was said so far."""

    USER, ASSISTANT, THINK, END_THINK = 3, 4, 5, 6

    def __init__(self, model: Transformer, system: int) -> None:
        self.most = model.config.max_position_embeddings
        self.history = [0, *words(system, seed=system)]
        self.last: list[int] = []

    def prompt(self, kind: str, length: int, thinking: bool, seed: int) -> list[int]:
        if kind == "message" or not self.last:
            self.history += self.last
        elif kind == "tool":
            self.history += [*self.last[:-1], 8, 9]
        elif kind == "again":
            length = 0
        marks = [self.ASSISTANT, self.THINK if thinking else self.END_THINK]
        self.question = [self.USER, *words(length, seed), *marks]
        return [*self.history, *self.question][: self.most - 12]

    def answered(self, answer: list[int], thinking: bool) -> None:
        said = answer[len(answer) // 2 :] if thinking else answer
        self.last = [*self.question[:-1], self.END_THINK, *said, 1]


@settings(
    max_examples=4,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    talks=st.lists(TALK, min_size=1, max_size=4),
    blocks=st.integers(4, 7),
    running=st.integers(1, 3),
    snapshots=st.integers(1, 12),
    step=st.integers(6, 80),
    saved=st.sampled_from([0, 1 << 30]),
    temperature=st.sampled_from([0.0, 1.0]),
    disk=st.booleans(),
    draft=st.sampled_from(["none", "mtp", "mtp"]),
)
def test_conversations_side_by_side(
    tiny,
    witness,
    always,
    tmp_path_factory,
    talks,
    blocks,
    running,
    snapshots,
    step,
    saved,
    temperature,
    disk,
    draft,
):
    """With a disk, twice: the second engine has nothing in memory."""

    async def converse(own: Engine, number: int) -> None:
        system, turns = talks[number]
        talk = Talk(tiny.model, system)
        for i, (kind, length, most, thinking) in enumerate(turns):
            seed = 100 * number + i
            prompt = talk.prompt(kind, length, thinking, seed)
            sampling = Sampling(temperature=temperature, seed=seed)
            request = Request(prompt=prompt, max_tokens=most, sampling=sampling, priority=number % 2)
            answer = [token async for chunk in own.generate(request) for token in chunk.ids]
            check_alone(tiny.model, witness, prompt, sampling, answer)
            talk.answered(answer, thinking)

    async def everybody(own: Engine) -> None:
        await asyncio.gather(*(converse(own, number) for number in range(len(talks))))

    values = {"max_running": running, "snapshots": snapshots, "step_tokens": step, "saved_memory": saved}
    values |= {"draft": draft}
    folder = tmp_path_factory.mktemp("cache") if disk else None
    for _ in range(2 if disk else 1):
        witness.seen.clear()
        with limited(tiny.model, blocks, snapshot_every=50, cache_dir=folder, **values) as own:
            asyncio.run(everybody(own))


@pytest.mark.parametrize("draft", ["none", "mtp"])
def test_preempted_in_the_middle_of_a_prompt_and_of_an_answer(tiny, witness, always, draft):
    """One slot, and a more important request that comes twice."""
    low = Request(prompt=words(60, 1), max_tokens=12, sampling=Sampling(seed=1))
    high = [Request(prompt=words(9, i), max_tokens=3, priority=1, sampling=Sampling(seed=i)) for i in (2, 3)]
    values = {"max_running": 1, "snapshots": 0, "step_tokens": 20, "saved_memory": 1 << 30}
    with limited(tiny.model, 8, draft=draft, **values) as own:
        answer = own.submit(low)
        own.step()
        for request in high:
            list(own.stream(request))
            while len(answer.ids) < 2:
                own.step()
        got = [token for chunk in own.chunks(answer) for token in chunk.ids]
        counters = own.stats().counters
    assert counters.preempted == 2
    assert counters.dropped_tokens == 0
    check_alone(tiny.model, witness, list(low.prompt), low.sampling, got)


def test_the_shipped_model_in_a_chat_with_others_beside_it(witness):
    """Rendered as clients send it: a thinking turn, an answer edited away, another user's chat."""
    model = fourfold.load(fourfold.shipped_model(), numerics="fast")
    assert model.tokenizer is not None
    system = {"role": "system", "content": "You tell stories to small children. " * 12}

    def prompt(*messages: dict[str, str], thinking: bool = False) -> list[int]:
        chat = Chat(messages=[system, *messages], thinking=thinking)
        return chat.prompt().encode(model.tokenizer)

    first = {"role": "user", "content": "Tell me a story about a red ball."}
    said = {"role": "assistant", "content": "Once there was a red ball.", "reasoning_content": "A ball."}
    prompts = [
        prompt(first, thinking=True),
        prompt(first, said, {"role": "user", "content": "And then?"}, thinking=True),
        prompt(first, said, {"role": "user", "content": "And where is it now?"}),
    ]
    cached = []
    with Engine(model, EngineConfig(max_running=4, step_tokens=64, snapshots=16)) as own:
        for i, ids in enumerate(prompts):
            beside = [own.submit(Request(prompt=words(9 * i + 5, j), max_tokens=6)) for j in range(2)]
            sampling = Sampling(temperature=0.7, seed=i)
            answer = own.submit(Request(prompt=ids, max_tokens=8, sampling=sampling))
            got = [token for chunk in own.chunks(answer) for token in chunk.ids]
            cached.append(answer.cached_tokens)
            check_alone(model, witness, ids, sampling, got)
            for other in beside:
                list(own.chunks(other))
    # All but the mark that thinking begins; all before the edited message's text.
    assert cached[1] == len(prompts[0]) - 1
    assert cached[2] > len(prompts[0])
