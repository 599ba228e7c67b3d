"""What an answer must look like: a JSON schema, a regular expression, a choice, or calls of tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fourfold.errors import RequestError

Kind = Literal["json", "regex", "choice", "tools", "tools_opened"]

MOST_BYTES = 1 << 18
"""Of a schema, an expression, a list of options or tools, as JSON."""


@dataclass(frozen=True)
class Constraint:
    """What an answer must be.  Make one with the functions below; equal ones are compiled once.

    spec: what was given, as JSON.  thinking: the answer begins with reasoning, which is free; the constraint
    holds after its end.  RequestError, from these functions: it is malformed or too large; from
    `Engine.submit`: it cannot be compiled, with the reason.
    """

    kind: Kind
    spec: str
    thinking: bool = False

    @classmethod
    def json(cls, schema: Mapping[str, Any] | None = None) -> Constraint:
        """JSON of a JSON schema (drafts 4 to 2020-12 as far as llguidance has them); None: any object."""
        if schema is not None and not isinstance(schema, Mapping):
            raise RequestError(f"the JSON schema is {_shown(schema)}; allowed: an object")
        return cls(
            "json", _written("the JSON schema", {"type": "object"} if schema is None else dict(schema))
        )

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """The whole answer matches `pattern`: the Rust regex crate's syntax, \\d of ASCII, no look-around."""
        if not isinstance(pattern, str):
            raise RequestError(f"the regular expression is {_shown(pattern)}; allowed: a text")
        return cls("regex", _written("the regular expression", pattern))

    @classmethod
    def choice(cls, options: Sequence[str]) -> Constraint:
        """One of these texts."""
        texts = not isinstance(options, str) and all(isinstance(option, str) and option for option in options)
        if not texts or not options:
            raise RequestError(
                f"the choice is {_shown(options)}; allowed: a list of texts that are not empty"
            )
        return cls("choice", _written("the choice", list(options)))

    @classmethod
    def tool_calls(cls, tools: Sequence[Mapping[str, Any]], *, opened: bool = False) -> Constraint:
        """Free text, and then perhaps calls of these tools in the model's own form (DSML).

        tools: function tools as in Chat Completions; the arguments of one that is `strict` follow its schema.
        opened: the prompt ends with the opening of the calls, as one does that requires them.
        """
        named = all(isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping) for tool in tools)
        if not tools or not named:
            raise RequestError(f"tools is {_shown(tools)}; allowed: a list of function tools")
        return cls("tools_opened" if opened else "tools", _written("the list of tools", list(tools)))

    def after_thinking(self) -> Constraint:
        """The same, for an answer that begins with reasoning."""
        return replace(self, thinking=True)


def _written(what: str, value: object) -> str:
    """As JSON, keys in their order: the order of a schema's properties is that of the answer."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        size = len(text.encode("utf-8"))
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{what} is no JSON: {error}") from None
    if size > MOST_BYTES:
        raise RequestError(f"{what} has {size:,} bytes; allowed: at most {MOST_BYTES:,}")
    return text


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
