"""Whatever a model says and whatever a client sends: an answer or an error, never a crash, no text lost."""

from __future__ import annotations

import asyncio

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fourfold.server import answering, chat, messages, responses
from tests.protocol.test_parser import PIECE
from tests.server.conftest import NAME, ScriptedModel, Served

ASK = [{"role": "user", "content": "x"}]
FUNCTION = {"name": "f", "parameters": {"type": "object"}}


@pytest.fixture(scope="module")
def brief(tokenizer_file):
    """A server of short answers."""
    own = Served(ScriptedModel(tokenizer_file), answer_tokens=4, choices=2)
    own.model.say("fine")
    yield own
    own.engine.close()


@pytest.fixture(scope="module")
def served(tokenizer_file):
    """Nothing holds the model to the form of tool calls."""
    own = Served(ScriptedModel(tokenizer_file))
    with pytest.MonkeyPatch.context() as patch:
        for module in (answering, chat, messages, responses):
            patch.setattr(module, "constraint_of", lambda *_: None)
        yield own
    own.engine.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(PIECE, max_size=8).map("".join), thinks=st.booleans(), limit=st.sampled_from([7, 2000]))
def test_malformed_answers_in_every_protocol(served, text, thinks, limit):
    served.model.say(text)

    async def work():
        client, claude = served.openai(), served.anthropic()
        tools = [{"type": "function", "function": FUNCTION}]
        thinking = {"type": "enabled" if thinks else "disabled"}
        found = []
        options = {"model": NAME, "messages": ASK, "tools": tools, "max_tokens": limit}
        whole = await client.chat.completions.create(**options, extra_body={"thinking": thinking})
        message = whole.choices[0].message
        calls = [call.function.arguments for call in message.tool_calls or ()]
        found.append([getattr(message, "reasoning_content", "") or "", message.content or "", *calls])
        stream = await client.chat.completions.create(
            **options, extra_body={"thinking": thinking}, stream=True
        )
        parts: dict[object, str] = {"think": "", "text": ""}
        async for chunk in stream:
            delta = chunk.choices[0].delta
            parts["think"] += getattr(delta, "reasoning_content", None) or ""
            parts["text"] += delta.content or ""
            for call in delta.tool_calls or ():
                parts[call.index] = parts.get(call.index, "") + (call.function.arguments or "")
        found.append(list(parts.values()))
        answer = await client.responses.create(
            model=NAME,
            input="x",
            tools=[{"type": "function", **FUNCTION}],
            max_output_tokens=max(16, limit),
            reasoning={"effort": "high" if thinks else "none"},
        )
        if limit > 16:
            kinds = {"reasoning": "", "message": ""}
            arguments = []
            for item in answer.output:
                if item.type == "function_call":
                    arguments.append(item.arguments)
                else:
                    kinds[item.type] += item.content[0].text
            found.append([*kinds.values(), *arguments])
        assert all(one == found[0] for one in found), found
        reply = await claude.messages.create(
            model=NAME,
            messages=ASK,
            max_tokens=limit,
            thinking={"budget_tokens": 1024, **thinking} if thinks else thinking,
            tools=[{"name": "f", "input_schema": {"type": "object"}}],
        )
        texts = "".join(block.text for block in reply.content if block.type == "text")
        assert found[0][1] in texts or len(calls) > 1  # a call that was cut is a text, too
        if limit > 1000:
            shown = "".join(found[0])
            assert all(shown.count(letter) == text.count(letter) for letter in "é1")

    asyncio.run(work())


def document(served):
    """What clients are told of the server, for schemathesis."""
    return schemathesis.openapi.from_asgi("/openapi.json", served.app)


def test_no_request_that_our_document_allows_breaks_the_server(brief):
    failures: list[str] = []
    tried = 0
    for operation in document(brief).get_all_operations():
        case_strategy = operation.ok().as_strategy()

        @settings(
            max_examples=6,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=case_strategy)
        def fuzz(case):
            nonlocal tried
            tried += 1
            reply = case.call()
            if reply.status_code >= 500 and case.path != "/ready":  # which says what is so
                failures.append(f"{case.method} {case.path}: {reply.status_code} {reply.text[:300]}")

        fuzz()
    assert not failures and tried > 30
    assert not failures, failures
    assert tried > 30
