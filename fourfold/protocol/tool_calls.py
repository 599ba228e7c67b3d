"""The tool calls in an answer, as they come: DSML -> names and JSON arguments, and no character lost.

The publisher's parser says what a call is (tests compare).  It drops text that stands between, behind or in
the place of calls, and passes on values that are no JSON; here such text comes out as text, and such a value
as a string.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

MARK = "<｜DSML｜"
"""Where it stands in an answer, a block of tool calls begins."""

_END = "</｜DSML｜"
_TAG = re.compile(
    r'<｜DSML｜invoke name="(?P<call>[^"<>]+)">'
    r'|<｜DSML｜parameter name="(?P<key>[^"<>]+)" string="(?P<string>true|false)">'
    r"|(?P<closed></｜DSML｜(?:tool_calls|function_calls)>)"
    r"|</｜DSML｜(?P<end>invoke|parameter)>"
    r"|<｜DSML｜(?:tool_calls|function_calls)>"
)


@dataclass(frozen=True)
class CallDelta:
    """What a piece of text added to call `index`: its id and name, once; then pieces of its arguments."""

    index: int
    arguments: str = ""
    id: str = ""
    name: str = ""


class ToolCalls:
    """Reads one block of calls; what it finds are parts of calls and texts that belong to none.

    first: the index of its first call.  before: white space in front of the block, which is markup if a call
    comes.  closed: the block has ended, and `rest` is the text after it.
    """

    def __init__(self, first: int = 0, before: str = "") -> None:
        self.count = first
        self.closed = False
        self._first = first
        self._buffer = ""
        self._before = before  # and all in front of the first call: the answer's own text if none comes
        self._space = ""  # white space that is markup if a tag follows
        self._strays = ""  # text between the tags of a call, which comes after it
        self._in_call = False
        self._keys = 0
        self._in_value = False
        self._json: str | None = None  # a value that is no string is JSON only as a whole

    @property
    def rest(self) -> str:
        return self._buffer

    def push(self, text: str) -> Iterator[CallDelta | str]:
        """What `text`, with what was held back before it, adds for certain."""
        self._buffer += text
        while self._buffer and not self.closed:
            if self._in_value:
                end = self._buffer.find(_END)
                yield from self._add(self._take(end if end >= 0 else len(self._buffer) - self._held()))
                if end < 0:
                    return
                yield from self._end_value()
            elif self._buffer[0] != "<":
                yield from self._stray(self._take(_place(self._buffer.find("<"), len(self._buffer))))
            else:
                stop = re.search("[<>]", self._buffer[1:])
                if stop is None and self._may_be_tag():
                    return
                whole = stop is not None and stop[0] == ">"
                yield from self._tag(self._take(1 if stop is None else stop.start() + 1 + whole))

    def finish(self, *, complete: bool) -> Iterator[CallDelta | str]:
        """The answer ends here.  complete: by the model's wish.

        A call that was cut keeps its arguments as they are, which is no JSON: nobody runs half a command.
        """
        rest = self._take(len(self._buffer))
        if self._in_value:
            yield from self._add(rest)
            if self._json is not None:
                yield self._arguments(self._json)
        elif self.count == self._first:
            yield self._before + rest
        else:
            cut = rest if rest and not rest.startswith("</") else ""
            self._strays += cut
            if complete and not cut:
                yield from self._end_call()
        if self._strays:
            yield self._strays

    def _take(self, count: int) -> str:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _held(self) -> int:
        """Length of the longest end of the buffer that a tag in a value may begin with."""
        most = min(len(self._buffer), len(_END) - 1)
        return next((n for n in range(most, 0, -1) if _END.startswith(self._buffer[-n:])), 0)

    def _may_be_tag(self) -> bool:
        return any(mark.startswith(self._buffer[: len(mark)]) for mark in (MARK, _END))

    def _tag(self, text: str) -> Iterator[CallDelta | str]:
        """From "<" to ">", or up to the next "<"."""
        tag = _TAG.fullmatch(text)
        if tag is None or (tag["key"] and not self._in_call):
            yield from self._stray(text)
            return
        self._space = ""
        if tag["call"]:
            yield from self._end_call()
            if self.count == self._first and (stray := _TAG.sub("", self._before).strip()):
                yield stray
            self._in_call, self._keys = True, 0
            self.count += 1
            yield CallDelta(self.count - 1, id=f"call_{secrets.token_hex(12)}", name=tag["call"])
        elif tag["key"]:
            self._in_value, self._json = True, None if tag["string"] == "true" else ""
            opening = ("{" if self._keys == 0 else ", ") + json.dumps(tag["key"], ensure_ascii=False) + ": "
            self._keys += 1
            yield self._arguments(opening + ('"' if self._json is None else ""))
        elif self.count == self._first:
            self._before += text
        elif tag["closed"] or tag["end"] == "invoke":
            yield from self._end_call()
        if tag["closed"]:
            self.closed = True
            if self.count == self._first:
                yield self._before

    def _stray(self, text: str) -> Iterator[str]:
        """Text between tags."""
        if self.count == self._first:
            self._before += text
            return
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if self._in_call:
            self._strays += shown
        elif shown:
            yield shown

    def _add(self, text: str) -> Iterator[CallDelta]:
        """Text of a value."""
        if self._json is not None:
            self._json += text
        elif text:
            yield self._arguments(json.dumps(text, ensure_ascii=False)[1:-1])

    def _end_value(self) -> Iterator[CallDelta]:
        self._in_value = False
        yield self._arguments('"' if self._json is None else _as_json(self._json))

    def _end_call(self) -> Iterator[CallDelta | str]:
        if self._in_call:
            self._in_call = False
            yield self._arguments("}" if self._keys else "{}")
            if self._strays:
                yield self._strays
            self._strays = ""

    def _arguments(self, text: str) -> CallDelta:
        return CallDelta(self.count - 1, text)


def _place(found: int, otherwise: int) -> int:
    return found if found >= 0 else otherwise


def _as_json(text: str) -> str:
    """A value as it is written if that is JSON, else as a string."""
    try:
        json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text.strip()


def _no_json(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
