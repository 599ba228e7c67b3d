"""/v1/responses with the real `openai` client."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from tests.server.conftest import NAME
from tests.server.test_chat import CALL, TWO_CALLS

ASK = "Say what there is to say about it, all of it."
TOOLS = [
    {
        "type": "function",
        "name": "f",
        "parameters": {"type": "object", "properties": {"k": {"type": "string"}}},
    }
]
THINK = {"reasoning": {"effort": "high"}}
LOGPROBS = ["message.output_text.logprobs"]
BASE = {"model": NAME, "input": ASK}


def run(work):
    return asyncio.run(work)


def said(response):
    """(type, text or arguments) of the items."""
    return [
        (item.type, item.arguments if item.type == "function_call" else item.content[0].text)
        for item in response.output
    ]


@pytest.mark.parametrize(
    ("says", "more", "wanted", "status"),
    [
        ("Hello.", {}, [("message", "Hello.")], "completed"),
        ("why</think>so", THINK, [("reasoning", "why"), ("message", "so")], "completed"),
        (
            "why</think>so" + TWO_CALLS,
            {"tools": TOOLS, **THINK},
            [
                ("reasoning", "why"),
                ("message", "so"),
                ("function_call", '{"k": "v"}'),
                ("function_call", '{"k": "v"}'),
            ],
            "completed",
        ),
        ("one two three", {"max_output_tokens": 3}, [("message", "one t")], "incomplete"),
    ],
)
def test_answers_whole_and_streamed(serve, says, more, wanted, status):
    async def work():
        client = serve(says).openai()
        whole = await client.responses.create(**BASE, **more)
        assert said(whole) == wanted and whole.status == status
        assert whole.output_text == "".join(text for kind, text in wanted if kind == "message")
        names, numbers = [], []
        async with client.responses.stream(**BASE, **more) as stream:
            async for event in stream:
                names.append(event.type)
                numbers.append(event.sequence_number)
            final = await stream.get_final_response() if status == "completed" else event.response
        assert said(final) == wanted
        assert names[:2] == ["response.created", "response.in_progress"]
        assert names[-1] == f"response.{status}"
        assert numbers == list(range(len(numbers)))
        assert names.count("response.output_item.added") == names.count("response.output_item.done")
        assert final.usage.output_tokens == whole.usage.output_tokens
        assert final.usage.input_tokens_details.cached_tokens > 0

    run(work())


def test_log_probabilities_of_the_text(serve):
    async def work():
        served = serve("why</think>so <" + TWO_CALLS)
        more = {"tools": TOOLS, **THINK, "include": LOGPROBS, "top_logprobs": 3}
        client = served.openai()
        whole = await client.responses.create(**BASE, **more)
        content = whole.output[1].content[0]
        assert content.text == "so <" == "".join(one.token for one in content.logprobs)
        assert all(one.logprob <= 0 and len(one.top_logprobs) == 3 for one in content.logprobs)
        told = []
        async with client.responses.stream(**BASE, **more) as stream:
            async for event in stream:
                if event.type == "response.output_text.delta":
                    told += event.logprobs
                if event.type == "response.output_text.done":
                    done = event.logprobs
            final = await stream.get_final_response()
        assert [one.token for one in told] == [one.token for one in done]
        assert final.output[1].content[0].logprobs == content.logprobs
        plain = await client.responses.create(**BASE, tools=TOOLS, **THINK)
        assert plain.output[1].content[0].logprobs == []

    run(work())


def test_a_tool_round(serve):
    async def work():
        served = serve("why</think>" + CALL)
        client = served.openai()
        first = await client.responses.create(**BASE, tools=TOOLS, **THINK)
        call = first.output[-1]
        assert json.loads(call.arguments) == {"k": "v"}
        served.model.say("enough</think>Done.")
        turns = [
            {"role": "user", "content": ASK},
            *(item.model_dump(exclude_none=True) for item in first.output),
            {"type": "function_call_output", "call_id": call.call_id, "output": "42"},
        ]
        second = await client.responses.create(model=NAME, input=turns, tools=TOOLS, **THINK)
        assert second.output_text == "Done."
        assert second.usage.input_tokens_details.cached_tokens > first.usage.input_tokens

    run(work())


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "image_url",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"top_logprobs": 2}, "message.output_text.logprobs"),
        ({"top_logprobs": 21, "include": LOGPROBS}, "top_logprobs"),
        ({"include": ["file_search_call.results"]}, "include"),
    ],
)
def test_what_is_refused_is_named(serve, body, word):
    async def work():
        reply = await serve().http().post("/v1/responses", json={**BASE, **body})
        assert reply.status_code in (400, 422) and word in reply.json()["error"]["message"], reply.text

    run(work())


def test_tools_in_namespaces(serve):
    async def work():
        served = serve("why</think>" + CALL)
        client = served.openai()
        space = {"type": "namespace", "name": "more", "description": "more of them", "tools": TOOLS}
        other = {**TOOLS[0], "name": "g"}
        body = {**BASE, **THINK, "tools": [other, space], "extra_body": {"client_metadata": {"a": "b"}}}
        first = await client.responses.create(**body)
        (call,) = [item for item in first.output if item.type == "function_call"]
        assert (call.name, call.namespace) == ("f", "more")
        served.model.say("enough</think>Done.")
        turns = [
            {"role": "user", "content": ASK},
            *(item.model_dump(exclude_none=True) for item in first.output),
            {"type": "function_call_output", "call_id": call.call_id, "output": "42"},
        ]
        second = await client.responses.create(**{**body, "input": turns})
        assert second.output_text == "Done."
        assert second.usage.input_tokens_details.cached_tokens > first.usage.input_tokens
        with pytest.raises(openai.BadRequestError, match="two called 'f'"):
            await client.responses.create(**{**body, "tools": [*TOOLS, space]})

    run(work())


def test_nothing_is_stored(serve):
    async def work():
        client = serve().openai()
        made = await client.responses.create(**BASE)
        for ask in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
            with pytest.raises(openai.NotFoundError, match="stores none"):
                await ask(made.id)

    run(work())


def test_an_engine_that_fails_tells_its_client(serve):
    async def work():
        served = serve("abc")
        served.model.poison = {served.model.tokenizer.encode("b")[0]}
        client = served.openai()
        events = [event async for event in await client.responses.create(**BASE, stream=True)]
        assert events[-1].type == "error" and "RuntimeError" in events[-1].message

    run(work())
