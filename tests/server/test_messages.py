"""/v1/messages with the real `anthropic` client."""

from __future__ import annotations

import asyncio

import anthropic
import pytest

from tests.server.conftest import NAME
from tests.server.test_chat import CALL, TWO_CALLS

ASK = [{"role": "user", "content": "Say what there is to say about it, all of it."}]
TOOLS = [
    {"name": "f", "input_schema": {"type": "object", "properties": {"k": {"type": "string"}}}},
]
THINK = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
BASE = {"model": NAME, "max_tokens": 2000, "messages": ASK}


def run(work):
    return asyncio.run(work)


async def streamed(client, **more):
    """The message that the client puts together, and the names of the events."""
    names = []
    async with client.messages.stream(**{**BASE, **more}) as stream:
        async for event in stream:
            names.append(event.type)
        return await stream.get_final_message(), names


def blocks(message):
    """Without ids and signatures."""
    return [
        {
            k: v
            for k, v in block.model_dump(exclude_none=True).items()
            if k in ("type", "text", "thinking", "input")
        }
        for block in message.content
    ]


@pytest.mark.parametrize(
    ("says", "more", "wanted", "reason"),
    [
        ("Hello.", {}, [{"type": "text", "text": "Hello."}], "end_turn"),
        ("one two", {"stop_sequences": ["two"]}, [{"type": "text", "text": "one "}], "stop_sequence"),
        (
            "why</think>so" + CALL,
            {"tools": TOOLS, **THINK},
            [
                {"type": "thinking", "thinking": "why"},
                {"type": "text", "text": "so"},
                {"type": "tool_use", "input": {"k": "v"}},
            ],
            "tool_use",
        ),
        (
            TWO_CALLS,
            {"tools": TOOLS},
            [{"type": "tool_use", "input": {"k": "v"}}] * 2,
            "tool_use",
        ),
        (
            TWO_CALLS,
            {"tools": TOOLS, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            [{"type": "tool_use", "input": {"k": "v"}}],
            "tool_use",
        ),
    ],
)
def test_answers_whole_and_streamed(serve, says, more, wanted, reason):
    async def work():
        client = serve(says).anthropic()
        whole = await client.messages.create(**BASE, **more)
        assert blocks(whole) == wanted
        assert whole.stop_reason == reason
        message, names = await streamed(client, **more)
        assert blocks(message) == wanted and message.stop_reason == reason
        assert message.stop_sequence == whole.stop_sequence
        assert message.usage.output_tokens == whole.usage.output_tokens
        assert names[0] == "message_start" and names[-1] == "message_stop"
        assert names.count("content_block_start") == names.count("content_block_stop") == len(wanted)
        # The second asked for what the first had computed.
        assert message.usage.cache_read_input_tokens > 0 == whole.usage.cache_read_input_tokens
        total = message.usage.cache_read_input_tokens + message.usage.input_tokens
        assert total == whole.usage.input_tokens

    run(work())


def test_a_tool_round_with_thinking_passed_back(serve):
    async def work():
        served = serve("why</think>" + CALL)
        client = served.anthropic()
        first = await client.messages.create(**BASE, tools=TOOLS, **THINK)
        assert first.content[0].signature
        served.model.say("enough</think>Done.")
        result = {"type": "tool_result", "tool_use_id": first.content[-1].id, "content": "42"}
        turns = [
            *ASK,
            {"role": "assistant", "content": [block.model_dump() for block in first.content]},
            {"role": "user", "content": [result]},
        ]
        second = await client.messages.create(**{**BASE, "messages": turns}, tools=TOOLS, **THINK)
        assert blocks(second) == [
            {"type": "thinking", "thinking": "enough"},
            {"type": "text", "text": "Done."},
        ]
        # Reasoning that comes back as it was is found in the cache.
        assert second.usage.cache_read_input_tokens > first.usage.input_tokens

    run(work())


@pytest.mark.parametrize(("keep", "status"), [("all", 200), ({"type": "thinking_turns", "value": 1}, 400)])
def test_an_edit_that_leaves_the_conversation_as_it_is(serve, keep, status):
    async def work():
        edit = {"type": "clear_thinking_20251015", "keep": keep}
        body = {"model": NAME, "messages": ASK, "max_tokens": 9, "context_management": {"edits": [edit]}}
        reply = await serve().http().post("/v1/messages", json=body)
        assert reply.status_code == status
        assert status == 200 or "context_management.edits.0.keep" in reply.json()["error"]["message"]

    run(work())


def test_the_limit_and_what_it_cuts(serve):
    async def work():
        client = serve("x" + CALL).anthropic()
        short = await client.messages.create(**{**BASE, "max_tokens": 3}, tools=TOOLS)
        assert short.stop_reason == "max_tokens"
        # Arguments that were cut are no JSON, and no call.
        cut = len(CALL) - 60
        long = await client.messages.create(**{**BASE, "max_tokens": cut}, tools=TOOLS)
        assert [block.type for block in long.content] == ["text", "text"], long

    run(work())


def test_tokens_are_counted(serve):
    async def work():
        client = serve().anthropic()
        counted = await client.messages.count_tokens(model=NAME, messages=ASK, tools=TOOLS)
        whole = await client.messages.create(**BASE, tools=TOOLS)
        assert counted.input_tokens == whole.usage.input_tokens

    run(work())


def test_both_paths(serve):
    async def work():
        http = serve().http()
        for path in ("/v1/messages", "/anthropic/v1/messages"):
            reply = await http.post(path, json=BASE)
            assert reply.json()["content"] == [{"type": "text", "text": "Hello."}]
            reply = await http.post(path + "/count_tokens", json={"model": NAME, "messages": ASK})
            assert reply.json()["input_tokens"] > 10

    run(work())


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"colour": "red"}, 400, "colour"),
        ({"max_tokens": None}, 400, "max_tokens"),
        ({"model": "claude"}, 404, "claude"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, 400, "image"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, 400, "tools"),
        (
            {"tool_choice": {"type": "any"}, "thinking": {"type": "enabled"}, "tools": TOOLS},
            400,
            "tool_choice",
        ),
        ({"tool_choice": {"type": "any"}}, 400, "tools"),
    ],
)
def test_errors_have_the_protocols_shape(serve, body, status, word):
    async def work():
        reply = await serve().http().post("/v1/messages", json={**BASE, **body})
        document = reply.json()
        assert reply.status_code == status, document
        assert document["type"] == "error" and set(document["error"]) == {"type", "message"}
        assert word in document["error"]["message"]
        assert document["request_id"] == reply.headers["x-request-id"]

    run(work())


def test_the_clients_errors(serve):
    async def work():
        served = serve("abc")
        client = served.anthropic()
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(**{**BASE, "model": "claude"})
        served.model.poison = {served.model.tokenizer.encode("b")[0]}
        with pytest.raises(anthropic.InternalServerError, match="RuntimeError"):
            await client.messages.create(**BASE)
        with pytest.raises(anthropic.APIStatusError, match="RuntimeError"):
            await streamed(client)

    run(work())
