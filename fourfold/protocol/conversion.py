"""A request of one of the three chat protocols -> the prompt, and how its answer is to be read.

`deepseek-recipe` converts and renders; here the effort is put into the words of the checkpoint's release and
its errors become ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fourfold.errors import RequestError
from fourfold.protocol.parser import AnswerParser, Stage
from fourfold.tokenizer import Tokenizer

PromptFormat = Literal["preview", "0813"]
Family = Literal["chat", "messages", "responses"]
ConstraintKind = Literal["json", "regex", "tool_call", "tool_call_required"]

MODEL = "DeepSeek-V4-Pro"
"""The library's name for V4; it never reaches a prompt."""

# The library renders the later format and has filled in "high" where no effort was said.  The April release
# ("preview") knows two efforts: its high is the later low, its max the later high.
_EFFORTS: dict[PromptFormat, dict[str, str]] = {
    "preview": {"low": "low", "high": "low", "xhigh": "high", "max": "high"},
    "0813": {"low": "low", "high": "high", "xhigh": "xhigh", "max": "max"},
}


def prompt_format(checkpoint: str) -> PromptFormat:
    """The format that a checkpoint of this name was trained with: "0813" for dated releases, else "preview".

    Dated releases end in four digits (DeepSeek-V4-Pro-0813, DeepSeek-V4-Flash-0731). A name can lie: every
    caller lets the user choose.
    """
    return (
        "0813" if re.search(r"V4[\w.]*-(Flash|Pro)-\d{4}$", _last(checkpoint), re.IGNORECASE) else "preview"
    )


def thinks_unasked(checkpoint: str) -> bool:
    """Whether a request that does not say is answered with reasoning: as the hosted service does, with the
    published models; others were hardly taught to."""
    return re.search(r"DeepSeek-V4", _last(checkpoint), re.IGNORECASE) is not None


def _last(checkpoint: str) -> str:
    return re.split(r"[\\/]", checkpoint.rstrip("\\/"))[-1]


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt: its text, and the ranges of it that are special tokens; all else is plain text."""

    text: str
    special_ranges: tuple[tuple[int, int], ...]

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """Token ids. A special token spelled inside a message stays plain text.

        Raises TokenizerError when the tokenizer lacks one of the prompt's special tokens.
        """
        ids: list[int] = []
        end = 0
        for start, stop in self.special_ranges:
            ids += tokenizer.encode(self.text[end:start])
            ids.append(tokenizer.token_id(self.text[start:stop]))
            end = stop
        return ids + tokenizer.encode(self.text[end:])


@dataclass(frozen=True)
class Turn:
    """What the model is asked.

    stage: where the prompt ends.  stop: strings that end the content.  tools: there are any to call.
    constraint: what the answer must look like, as the library says it: its kind, and a JSON schema, a regular
    expression or a list of tools.
    """

    prompt: Prompt
    stage: Stage
    stop: tuple[str, ...] = ()
    tools: bool = False
    constraint: tuple[ConstraintKind, str] | None = None

    def parser(self) -> AnswerParser:
        """A fresh parser for the answer."""
        return AnswerParser(self.stage, stop=self.stop, tools=self.tools)


def convert(
    family: Family, body: Mapping[str, Any], *, format: PromptFormat = "preview", thinking: bool = True
) -> Turn:
    """The turn that a request body asks for.

    thinking: whether one that does not say wants reasoning; a forced call of a tool then goes without, since
    the two exclude each other.  RequestError: what is malformed, by the library's rules.
    """
    import deepseek_recipe as recipe

    if format not in _EFFORTS:
        raise RequestError(f"prompt format is {format!r}; allowed: {', '.join(_EFFORTS)}")
    request_type: Any = {
        "chat": recipe.ChatCompletionRequest,
        "messages": recipe.MessagesRequest,
        "responses": recipe.ResponsesRequest,
    }[family]
    options = recipe.ConversionOptions(
        default_thinking_mode=thinking and not _forces_a_call(body.get("tool_choice")),
        responses_web_search=recipe.WebSearchBehavior.Reject,
    )
    try:
        request = request_type({**body, "model": MODEL}).convert(options)
        conversation, constraint = _completed(request, body if family == "messages" else {}, format)
        rendered = recipe.DeepseekV4Encoding().render_conversation(conversation)
    except recipe.ConversionError as error:
        raise RequestError(_message(error.body)) from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise RequestError(str(error)) from None
    parsing = request.parsing_options
    stage = parsing.thinking_initial_stage
    return Turn(
        prompt=Prompt(rendered.prompt, tuple(rendered.special_ranges)),
        stage=Stage(
            thinking=stage is not None,
            reasoning=stage is not None and stage.starts_in_reasoning(),
            continued=stage is not None and stage != recipe.ThinkingInitialStage.ReasoningStart,
            opened=parsing.starts_in_tool_calls or conversation.tool_choice == "required",
        ),
        stop=tuple(parsing.stop_sequences),
        tools=parsing.parse_tool_calls,
        constraint=constraint,
    )


def _forces_a_call(choice: Any) -> bool:
    kind = choice.get("type") if isinstance(choice, Mapping) else choice
    return kind not in (None, "auto", "none")


def _completed(
    request: Any, messages_body: Mapping[str, Any], format: PromptFormat
) -> tuple[Any, tuple[ConstraintKind, str] | None]:
    """The library's conversation with the effort in the words of a release, and its constraint.

    Of the Messages protocol it leaves out that some tool must be called ("any"), and schemas of answers.
    """
    import deepseek_recipe as recipe

    old, found = request.conversation, request.inference_options.output_constraint
    constraint = None if found is None else (found.kind, found.schema)
    choice, schema = old.tool_choice, old.response_schema
    if (messages_body.get("tool_choice") or {}).get("type") == "any":
        if old.thinking_mode:
            raise RequestError(
                "tool_choice is any with thinking; allowed: auto or none, or thinking disabled"
            )
        if constraint is None:
            raise RequestError("tool_choice is any without tools; add tools")
        choice, constraint = "required", ("tool_call_required", constraint[1])
    if answer_format := (messages_body.get("output_config") or {}).get("format"):
        schema = answer_format["schema"]
        constraint = ("json", json.dumps(schema, ensure_ascii=False))
    effort = _EFFORTS[format].get(old.reasoning_effort, old.reasoning_effort)
    if (effort, choice, schema) == (old.reasoning_effort, old.tool_choice, old.response_schema):
        return old, constraint
    conversation = recipe.Conversation(
        old.messages,
        thinking_mode=old.thinking_mode,
        tools=old.tools,
        tool_choice=choice,
        reasoning_effort=effort,
        response_format="json_object" if old.response_format == "json_object" else "text",
        response_schema=schema,
        response_regex=old.response_regex,
    )
    return conversation, constraint


def _message(body: str) -> str:
    """The message in an error of the library, which is a JSON document of the request's protocol."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body
