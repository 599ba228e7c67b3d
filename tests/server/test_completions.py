"""/v1/completions with the real `openai` client."""

from __future__ import annotations

import asyncio

import openai
import pytest

from tests.server.conftest import NAME


def run(work):
    return asyncio.run(work)


def test_texts_are_continued(serve):
    async def work():
        served = serve(" upon a time.")
        client = served.openai()
        whole = await client.completions.create(model=NAME, prompt="Once", max_tokens=50)
        assert whole.choices[0].text == " upon a time." and whole.choices[0].finish_reason == "stop"
        stream = await client.completions.create(
            model=NAME, prompt="Once", max_tokens=50, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == " upon a time."
        assert chunks[-1].usage == whole.usage and not chunks[-1].choices
        ids = [0, *served.model.tokenizer.encode("Once")]
        same = await client.completions.create(model=NAME, prompt=ids, max_tokens=50)
        assert same.choices[0].text == " upon a time." and same.usage.prompt_tokens == len(ids)
        short = await client.completions.create(model=NAME, prompt="Once", max_tokens=50, stop=["a t"])
        assert (short.choices[0].text, short.choices[0].finish_reason) == (" upon ", "stop")

    run(work())


def test_many_prompts_and_choices(serve):
    async def work():
        client = serve(None).openai()
        both = await client.completions.create(model=NAME, prompt=["a", "b"], n=2, seed=3, max_tokens=6)
        assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
        alone = await client.completions.create(model=NAME, prompt="b", n=2, seed=3, max_tokens=6)
        assert [one.text for one in alone.choices] == [one.text for one in both.choices[2:]]
        with pytest.raises(openai.UnprocessableEntityError):
            await client.completions.create(model=NAME, prompt=["a"] * 9, n=2)
        with pytest.raises(openai.BadRequestError, match="positions"):
            await client.completions.create(model=NAME, prompt=["a", "b" * 7000])

    run(work())


def test_echo_and_logprobs(serve):
    async def work():
        served = serve(None)
        client = served.openai()
        text = "some text to be scored"
        scored = await client.completions.create(model=NAME, prompt=text, echo=True, logprobs=2, max_tokens=0)
        found = scored.choices[0].logprobs
        ids = served.model.tokenizer.encode(text)
        assert scored.choices[0].text == text == "".join(found.tokens) and len(found.tokens) == len(ids)
        assert all(logprob < 0 for logprob in found.token_logprobs)
        assert found.text_offset == [text.index("".join(found.tokens[i:])) for i in range(len(ids))]
        options = {"model": NAME, "prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 4, "seed": 1}
        whole = (await client.completions.create(**options)).choices[0]
        stream = await client.completions.create(**options, stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]
        assert "".join(chunk.text for chunk in chunks) == whole.text
        pieces = [one for chunk in chunks if chunk.logprobs for one in chunk.logprobs.token_logprobs]
        assert pieces == whole.logprobs.token_logprobs
        assert whole.logprobs.token_logprobs[0] is None  # nothing comes before the first

    run(work())


def test_holes_are_filled_where_the_tokenizer_has_marks(serve):
    async def work():
        client = serve().openai()
        with pytest.raises(openai.BadRequestError, match="suffix"):
            await client.completions.create(model=NAME, prompt="a", suffix="c")

    run(work())


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": [999]},
        {"best_of": 3},
        {"suffix": "x", "echo": True},
        {"max_tokens": 0},
    ],
)
def test_what_is_refused(serve, body):
    async def work():
        reply = await serve().http().post("/v1/completions", json={"model": NAME, "prompt": "x", **body})
        assert reply.status_code in (400, 422), reply.text

    run(work())
