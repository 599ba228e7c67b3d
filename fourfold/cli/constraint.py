"""What --json-schema and --regex ask for."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from fourfold.engine.constraint import Constraint
from fourfold.errors import RequestError


def constraint_of(schema: Path | None, regex: str | None) -> Constraint | None:
    """What the answer must look like, if the user says.  RequestError: the file holds no JSON schema."""
    if schema is not None and regex is not None:
        raise typer.BadParameter("--json-schema and --regex exclude each other")
    if regex is not None:
        return Constraint.regex(regex)
    if schema is None:
        return None
    try:
        return Constraint.json(json.loads(schema.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{schema} cannot be read as a JSON schema: {error}") from None
