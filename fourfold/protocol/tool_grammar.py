"""The grammar of an answer that may call tools, in the Lark dialect of llguidance.

An answer is free text and then, if it calls tools, one block in the trained form (DSML):

    \\n\\n<｜DSML｜tool_calls>\\n
    <｜DSML｜invoke name="f">\\n
    <｜DSML｜parameter name="k" string="true">text as it is</｜DSML｜parameter>\\n
    <｜DSML｜parameter name="n" string="false">JSON</｜DSML｜parameter>\\n
    </｜DSML｜invoke>\\n
    </｜DSML｜tool_calls>

Its mark is one special token.  Plain text never spells it, nor does the grammar let it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fourfold.errors import RequestError

MARK = "｜DSML｜"
SPACE = {"whitespace_pattern": r" |\n[ \t]{0,32}"}
"""As `x-guidance` of a schema: a space or a line's end and indentation, or a lost model would never stop."""

_NAME = re.compile(r'[^"<>\x00-\x1f]{1,256}')
_NOTES = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
_DEEPEST = 8  # references to references
_MOST = 1 << 22
_TOO_LARGE = (
    f"the parameters of the tools make a grammar of more than {_MOST:,} characters; refer less often to "
    "definitions, or give fewer tools"
)


def tool_grammar(tools: Sequence[Mapping[str, Any]], mark: int, *, opened: bool) -> str:
    """Rules; the first is `answer`.

    tools: function tools as in Chat Completions.  The arguments of a `strict` one follow its schema, in its
    order; of others they have any names and values.  mark: id of the DSML token.  opened: the prompt ends
    with the opening of the block.  RequestError: a name cannot be written, or a schema is no object's.
    """
    calls = [f"call{i}" for i in range(len(tools))]
    lines = [
        "answer: calls" if opened else f'answer: TEXT | BEFORE {_tag(mark)} "tool_calls>\\n" calls',
        f'calls: ("<" {_tag(mark)} ({" | ".join(calls)}))+ "</" {_tag(mark)} "tool_calls>"',
        f"ANYTHING: /(.|\\n)*/ & ~/(.|\\n)*{MARK}(.|\\n)*/",
        "TEXT: ANYTHING",
        'BEFORE: ANYTHING "\\n\\n<"',
        'RAW: ANYTHING "</"',
        f'end: {_tag(mark)} "parameter>\\n"',
        f'any: "<" {_tag(mark)} /parameter name="/ NAME ("\\" string=\\"true\\">" RAW | '
        f'"\\" string=\\"false\\">" {_json({})} "</") end',
        'NAME: /[^"<>\\x00-\\x1f]{1,256}/',
    ]
    left = _MOST
    for call, tool in zip(calls, tools, strict=True):
        for line in _call(call, tool["function"], mark):
            lines.append(line)
            left -= len(line)
            if left < 0:
                raise RequestError(_TOO_LARGE)
    return "\n".join(lines) + "\n"


def literal(text: str) -> str:
    """A terminal that is this text."""
    return "/" + "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text) + "/"


def _tag(mark: int) -> str:
    return f"<[{mark}]>"


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": SPACE})


def _call(rule: str, function: Mapping[str, Any], mark: int) -> Iterator[str]:
    name = function.get("name")
    head = literal(f'invoke name="{_checked("a tool", name)}">\n')
    tail = f'"</" {_tag(mark)} "invoke>\\n"'
    if not function.get("strict"):
        yield f"{rule}: {head} any* {tail}"
        return
    schema = function.get("parameters") or {}
    properties = schema.get("properties", {}) if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping) or schema.get("type", "object") != "object":
        raise RequestError(f"the parameters of tool {name!r} are no object's schema; allowed: type object")
    definitions = {
        key: schema[key] for key in ("$defs", "definitions") if isinstance(schema.get(key), Mapping)
    }
    required = schema.get("required", [])
    if not isinstance(required, list):
        raise RequestError(
            f"required of tool {name!r} is {json.dumps(required)[:80]}; allowed: a list of names"
        )
    parts = []
    for i, (key, value) in enumerate(properties.items()):
        parts.append(f"{rule}_{i}" + ("" if key in required else "?"))
        start = literal(f'parameter name="{_checked(f"a parameter of tool {name!r}", key)}" string="')
        yield f'{rule}_{i}: "<" {_tag(mark)} {start} ({_forms(value, definitions)}) end'
    yield f"{rule}: {head} {' '.join(parts)} {tail}"


def _checked(what: str, name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or MARK in name:
        raise RequestError(f'{what} is named {name!r}; allowed: 1 to 256 characters other than ", < and >')
    return name


def _forms(schema: Any, definitions: Mapping[str, Any]) -> str:
    """All forms of a value."""
    forms, left = [], _MOST
    for form in _value(schema, definitions):
        forms.append(form)
        left -= len(form)
        if left < 0:
            raise RequestError(_TOO_LARGE)
    return " | ".join(forms)


def _value(schema: Any, definitions: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    """How the values of a schema are written after `string="`: as text, as JSON, or either."""
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        raise RequestError(
            f"a parameter's schema is {json.dumps(schema)[:80]}; allowed: an object, or true, and no "
            "reference to itself"
        )
    keys = schema.keys() - _NOTES
    if keys == {"$ref"} and (target := _target(schema["$ref"], definitions)) is not None:
        yield from _value(target, definitions, depth + 1)
        return
    if keys == {"anyOf"} and isinstance(schema["anyOf"], list) and schema["anyOf"]:
        for branch in schema["anyOf"]:
            yield from _value(branch, definitions, depth + 1)
        return
    options = [schema["const"]] if "const" in keys else schema.get("enum")
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds is not None and not isinstance(kinds, list):
        yield _as_json(schema, definitions)
        return
    if isinstance(options, list) and keys <= {"const", "enum", "type"}:
        texts = [option for option in options if isinstance(option, str) and MARK not in option]
        texts = texts if kinds is None or "string" in kinds else []
        others = [option for option in options if not isinstance(option, str)]
        yield from (literal(f'true">{text}</') for text in texts)
        if others or not texts:
            yield _as_json({**schema, "enum": others}, definitions)
    elif kinds is None and not keys:
        yield '"true\\">" RAW'
        yield _as_json({}, definitions)
    elif kinds is not None and "string" in kinds and keys == {"type"}:
        yield '"true\\">" RAW'
        if others := [kind for kind in kinds if kind != "string"]:
            yield _as_json({**schema, "type": others}, definitions)
    else:
        # What restricts a text (pattern, format, length) is understood where the text is a JSON string.
        yield _as_json(schema, definitions)


def _as_json(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" not in json.dumps(schema):
        definitions = {}
    return f'"false\\">" {_json({**schema, **definitions})} "</"'


def _target(reference: object, definitions: Mapping[str, Any]) -> Any:
    """The schema that a local reference names, None where it names no definition."""
    parts = reference.split("/") if isinstance(reference, str) else []
    if len(parts) != 3 or parts[0] != "#":
        return None
    return definitions.get(parts[1], {}).get(parts[2])
