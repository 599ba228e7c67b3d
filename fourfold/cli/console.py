"""Where words go: answers to stdout, remarks to stderr, greyed on a terminal; numbers with units."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.table import Table

from fourfold.errors import RequestError

_GREY, _PLAIN = "\x1b[90m", "\x1b[0m"


def note(text: str) -> None:
    """A remark: one line on stderr."""
    print(f"fourfold: {text}", file=sys.stderr, flush=True)


def error(text: str) -> None:
    """Why the command failed, on stderr."""
    note(f"error: {text}")


def answer(text: str) -> None:
    """A piece of the answer on stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def aside(text: str) -> None:
    """A piece of text that is not the answer (thinking, the prompt), on stderr, in grey."""
    sys.stderr.write(f"{_GREY}{text}{_PLAIN}" if has_colour(sys.stderr) else text)
    sys.stderr.flush()


def stdin(*, line: bool = False) -> str:
    """All of stdin, or its next line; empty at its end.  RequestError: it is not UTF-8."""
    stream = sys.stdin
    if stream is None:  # closed by who started us
        return ""
    if isinstance(stream, io.TextIOWrapper) and (stream.encoding, stream.errors) != ("utf-8", "strict"):
        stream.reconfigure(encoding="utf-8", errors="strict")
    try:
        return stream.readline() if line else stream.read()
    except UnicodeDecodeError as error:
        raise RequestError(
            f"stdin is not UTF-8 text ({error.reason}); convert it, with iconv for one"
        ) from None


def has_colour(stream: TextIO) -> bool:
    """Whether `stream` is a terminal whose user did not ask for plain text (NO_COLOR)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def document(value: Any) -> None:
    """The one JSON document of `--json`, on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False), flush=True)


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    justify: Literal["left", "right"] = "right",
) -> None:
    """A table on stdout, as wide as needed in a file. justify: of all columns but the first."""
    grid = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        show_header=any(columns),
    )
    for number, column in enumerate(columns):
        grid.add_column(column, justify=justify if number else "left", no_wrap=True, header_style="bold")
    for row in rows:
        grid.add_row(*row)
    # Wider than any table: a narrow terminal may break lines, but no number is ever cut.
    Console(file=sys.stdout, width=200, highlight=False, markup=False).print(grid)


def stderr_console() -> Console:
    """For progress bars, which show on a terminal only."""
    return Console(stderr=True, highlight=False, markup=False)


def rate(per_second: float) -> str:
    """2310.4 -> "2,310 tok/s", 41.32 -> "41.3 tok/s"."""
    return f"{number(per_second)} tok/s"


def number(value: float) -> str:
    """Three or more significant digits, thousands separated: 2,310 · 41.3 · 0.52."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def size(count: float) -> str:
    """Bytes in binary units: 1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def amount(count: float) -> str:
    """Parameters: 284e9 -> "284B", 15.7e6 -> "15.7M"."""
    for unit, step in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= step:
            return f"{count / step:.3g}{unit}" if count < 1000 * step else f"{count / step:,.0f}{unit}"
    return f"{count:.0f}"
