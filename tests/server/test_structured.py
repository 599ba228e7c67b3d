"""Structured output and required tools, with models that would say something else."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests.server.conftest import NAME
from tests.server.test_chat import ASK, THINK


class Pet(BaseModel):
    """What is asked for."""

    model_config = ConfigDict(extra="forbid")
    legs: Annotated[int, Field(ge=0, le=8)]
    good: bool


def run(work):
    return asyncio.run(work)


def test_json_schemas_hold(serve):
    async def work():
        served = serve(None)  # noise
        client = served.openai()
        answer = await client.chat.completions.parse(model=NAME, messages=ASK, response_format=Pet, seed=1)
        assert isinstance(answer.choices[0].message.parsed, Pet)
        parsed = await client.responses.parse(model=NAME, input="x" * 40, text_format=Pet)
        assert isinstance(parsed.output_parsed, Pet)
        message = await served.anthropic().messages.create(
            model=NAME,
            max_tokens=200,
            messages=ASK,
            output_config={"format": {"type": "json_schema", "schema": Pet.model_json_schema()}},
        )
        Pet.model_validate_json(message.content[0].text)

    run(work())


def test_a_schema_holds_after_the_reasoning(serve):
    async def work():
        served = serve("free words</think>")
        answer = await served.openai().chat.completions.create(
            model=NAME,
            messages=ASK,
            max_tokens=300,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": Pet.model_json_schema()},
            },
            **THINK,
        )
        message = answer.choices[0].message
        assert message.reasoning_content == "free words"
        Pet.model_validate_json(message.content)

    run(work())


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "g"}}], ids=["any", "named"]
)
def test_a_call_that_is_required_comes(serve, choice):
    async def work():
        tools = [
            {"type": "function", "function": {"name": name, "parameters": PARAMETERS, "strict": True}}
            for name in "fg"
        ]
        client = serve(None).openai()
        answer = await client.chat.completions.create(
            model=NAME, messages=ASK, tools=tools, tool_choice=choice, max_tokens=2000, seed=2
        )
        calls = answer.choices[0].message.tool_calls
        assert {call.function.name for call in calls} <= ({"f", "g"} if choice == "required" else {"g"})
        assert all(0 <= json.loads(call.function.arguments)["n"] <= 9 for call in calls)

    run(work())


PARAMETERS = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}


def test_what_cannot_be_compiled_is_refused(serve):
    async def work():
        served = serve()
        wrong = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "nothing"}}}
        with pytest.raises(openai.BadRequestError, match="schema"):
            await served.openai().chat.completions.create(model=NAME, messages=ASK, response_format=wrong)
        assert served.idle()

    run(work())
