"""/v1/chat/completions with the real `openai` client."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from tests.server.conftest import NAME

ASK = [{"role": "user", "content": "Say what there is to say about it, all of it."}]
INVOKE = (
    '<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="k" string="true">v</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n"
)
CALL = f"\n\n<｜DSML｜tool_calls>\n{INVOKE}</｜DSML｜tool_calls>"
TWO_CALLS = f"\n\n<｜DSML｜tool_calls>\n{INVOKE}{INVOKE}</｜DSML｜tool_calls>"
SCHEMA = {"type": "object", "properties": {"k": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "does f", "parameters": SCHEMA}}]
JSON = {"content-type": "application/json"}
THINK = {"extra_body": {"thinking": {"type": "enabled"}}}


def run(work):
    return asyncio.run(work)


async def streamed(client, **more):
    """reasoning, content, calls, finish reasons, usage."""
    calls: dict[int, list[str]] = {}
    reasoning, content, finish, usage = "", "", [], None
    stream = await client.chat.completions.create(
        model=NAME, messages=ASK, stream=True, stream_options={"include_usage": True}, **more
    )
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            content += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                own = calls.setdefault(call.index, ["", ""])
                own[0] += call.function.name or ""
                own[1] += call.function.arguments or ""
            finish += [choice.finish_reason] if choice.finish_reason else []
    return reasoning, content, calls, finish, usage


def test_an_answer(serve):
    async def work():
        client = serve("Hello there.").openai()
        answer = await client.chat.completions.create(model=NAME, messages=ASK)
        assert answer.choices[0].message.content == "Hello there."
        assert answer.choices[0].finish_reason == "stop"
        usage = answer.usage
        assert usage.prompt_tokens > 3 and usage.completion_tokens > 3
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert usage.prompt_tokens_details.cached_tokens == 0
        again = await client.chat.completions.create(model=NAME, messages=ASK)
        hits = again.usage.prompt_tokens_details.cached_tokens
        assert 0 < hits < again.usage.prompt_tokens
        assert again.usage.prompt_cache_hit_tokens == hits
        assert again.usage.prompt_cache_miss_tokens == again.usage.prompt_tokens - hits

    run(work())


def test_a_stream_says_the_same(serve):
    async def work():
        client = serve("why</think>because").openai()
        reasoning, content, calls, finish, usage = await streamed(client, **THINK)
        assert (reasoning, content, calls, finish) == ("why", "because", {}, ["stop"])
        whole = await client.chat.completions.create(model=NAME, messages=ASK, **THINK)
        message = whole.choices[0].message
        assert (message.reasoning_content, message.content) == ("why", "because")
        assert usage.completion_tokens == whole.usage.completion_tokens
        details = usage.completion_tokens_details
        assert 0 < details.reasoning_tokens < usage.completion_tokens
        assert whole.usage.completion_tokens_details.reasoning_tokens == details.reasoning_tokens

    run(work())


def test_a_tool_round(serve):
    async def work():
        served = serve("I call." + CALL)
        client = served.openai()
        _, content, calls, finish, _ = await streamed(client, tools=TOOLS)
        assert (content, finish) == ("I call.", ["tool_calls"])
        assert [(name, json.loads(own)) for name, own in calls.values()] == [("f", {"k": "v"})]
        whole = await client.chat.completions.create(model=NAME, messages=ASK, tools=TOOLS)
        message = whole.choices[0].message
        assert json.loads(message.tool_calls[0].function.arguments) == {"k": "v"}
        served.model.say("It is done.")
        back = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "42"}
        end = await client.chat.completions.create(
            model=NAME, messages=[*ASK, message.model_dump(), back], tools=TOOLS
        )
        assert end.choices[0].message.content == "It is done."

    run(work())


def test_one_call_only(serve):
    async def work():
        client = serve(TWO_CALLS).openai()
        whole = await client.chat.completions.create(model=NAME, messages=ASK, tools=TOOLS)
        assert len(whole.choices[0].message.tool_calls) == 2
        one = await client.chat.completions.create(
            model=NAME, messages=ASK, tools=TOOLS, parallel_tool_calls=False
        )
        assert len(one.choices[0].message.tool_calls) == 1
        assert one.choices[0].finish_reason == "tool_calls"

    run(work())


def test_stop_and_length(serve):
    async def work():
        client = serve("one two three").openai()

        async def ask(**more):
            choice = (await client.chat.completions.create(model=NAME, messages=ASK, **more)).choices[0]
            return choice.message.content, choice.finish_reason

        assert await ask(stop="two") == ("one ", "stop")
        assert await ask(stop=["x", " three"]) == ("one two", "stop")
        content, finish = await ask(max_tokens=3)
        assert "one two three".startswith(content) and finish == "length"
        assert (await ask(max_completion_tokens=3)) == (content, finish)

    run(work())


def test_a_choice_that_has_ended_is_computed_no_further(serve):
    async def work():
        served = serve(None)
        client = served.openai()

        async def ask(**more):
            before = served.engine.stats().counters.computed_tokens
            answer = await client.chat.completions.create(
                model=NAME, messages=ASK, n=2, seed=5, max_tokens=300, extra_body={"ignore_eos": True}, **more
            )
            texts = [choice.message.content for choice in answer.choices]
            return texts, served.engine.stats().counters.computed_tokens - before

        (short, long), _ = await ask()
        stop = next(short[at : at + 3] for at in range(9, 99) if short[at : at + 3] not in long)
        (begun, whole), computed = await ask(stop=stop)
        assert whole == long and short.startswith(begun) and len(begun) < 100
        assert 300 <= computed < 500

    run(work())


def test_choices_seeds_and_logprobs(serve):
    async def work():
        client = serve(None).openai()

        async def ask(**more):
            return await client.chat.completions.create(model=NAME, messages=ASK, max_tokens=8, **more)

        three = await ask(n=3, seed=5)
        texts = [choice.message.content for choice in three.choices]
        assert len(set(texts)) == 3 and three.usage.completion_tokens == 24
        assert [choice.message.content for choice in (await ask(n=2, seed=5)).choices] == texts[:2]
        found = (await ask(seed=5, logprobs=True, top_logprobs=2)).choices[0].logprobs.content
        assert len(found) == 8 and all(len(one.top_logprobs) == 2 for one in found)
        assert bytes(b for one in found for b in one.bytes).decode("utf-8", "replace") == texts[0]
        assert (await ask(temperature=0)).choices[0].message.content != texts[0]

    run(work())


def test_a_message_is_continued(serve):
    async def work():
        served = serve("p me.")
        begun = [*ASK, {"role": "assistant", "content": "Hel", "prefix": True}]
        answer = await served.openai().chat.completions.create(model=NAME, messages=begun)
        assert answer.choices[0].message.content == "p me."
        reply = await served.http().post("/tokenize", json={"messages": begun})
        assert reply.json()["prompt"].endswith("</think>Hel")

    run(work())


@pytest.mark.parametrize(
    ("format", "efforts"),
    [
        ("preview", {"low": "", "high": "", "max": "Absolute"}),
        ("0813", {"low": "", "high": "Absolute", "max": "Beyond"}),
    ],
)
def test_efforts_are_those_of_the_release(serve, format, efforts):
    async def work():
        for thinking, more in ((False, {"thinking": {"type": "enabled"}}), (True, {})):
            http = serve(format=format, thinking=thinking).http()
            for effort, words in efforts.items():
                reply = await http.post(
                    "/tokenize", json={"messages": ASK, "reasoning_effort": effort, **more}
                )
                prompt = reply.json()["prompt"]
                assert prompt.endswith("<think>")
                assert f"Reasoning Effort: {words}" in prompt if words else "Reasoning Effort" not in prompt

    run(work())


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"colour": "red"}, 400, "colour"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, 400, "messages.0.mood"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, None),
        ({"messages": [{"role": "nobody", "content": "x"}]}, 422, "messages.0.role"),
        ({"messages": []}, 400, None),
        ({"temperature": "hot"}, 422, "temperature"),
        ({"temperature": 1000}, 400, None),
        ({"n": 1000}, 422, "n"),
        ({"n": 17}, 422, "n"),
        ({"model": "gpt"}, 404, "model"),
        ({"top_logprobs": 3}, 400, None),
        ({"store": True}, 422, "store"),
        ({"logit_bias": {"²": 1}}, 400, None),
        ({"max_tokens": 0}, 422, "max_tokens"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, None),
        ({"messages": [{"role": "user", "content": "x" * 7000}]}, 400, None),
        ({"\ud800": 1}, 422, None),
    ],
)
def test_what_is_refused_is_named(serve, body, status, param):
    async def work():
        served = serve()
        sent = json.dumps({"model": NAME, "messages": ASK, **body})
        reply = await served.http().post("/v1/chat/completions", content=sent, headers=JSON)
        error = reply.json()["error"]
        assert reply.status_code == status, error
        if param is not None:
            assert error["param"] == param
            assert param in error["message"]
        assert set(error) == {"message", "type", "param", "code"}
        assert served.idle()

    run(work())


@pytest.mark.parametrize("sent", [b"", b"{", b"[]", b'"x"', b"null", b"\xff", b"[" * 100_000])
def test_no_json(serve, sent):
    async def work():
        reply = await serve().http().post("/v1/chat/completions", content=sent, headers=JSON)
        assert reply.status_code in (400, 422) and reply.json()["error"]["message"]

    run(work())


def test_the_clients_errors(serve):
    async def work():
        client = serve().openai()
        with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
            await client.chat.completions.create(model="gpt", messages=ASK)
        with pytest.raises(openai.BadRequestError, match="colour is not supported"):
            await client.chat.completions.create(model=NAME, messages=ASK, extra_body={"colour": 1})

    run(work())


def test_an_engine_that_fails_tells_its_client(serve):
    async def work():
        served = serve("abc")
        served.model.poison = {served.model.tokenizer.encode("b")[0]}
        client = served.openai()
        with pytest.raises(openai.InternalServerError, match="RuntimeError"):
            await client.chat.completions.create(model=NAME, messages=ASK)
        with pytest.raises(openai.APIError, match="RuntimeError"):
            await streamed(client)
        assert served.idle()
        assert "melted" not in served.log.getvalue()

    run(work())
