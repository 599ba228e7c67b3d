"""Files of prompts: what a teacher or a student is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fourfold.errors import ConfigError

Message = dict[str, Any]


def read_prompts(path: Path, key: str) -> Iterator[tuple[tuple[Message, ...], Mapping[str, Any]]]:
    """The messages of each prompt of a file, and its whole record: .txt has a prompt a line, .jsonl objects
    with "prompt" or "messages".

    key: of the configuration, for errors.  ConfigError names the file and the line that holds no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix == ".txt":
            yield ({"role": "user", "content": line.strip()},), {}
            continue
        try:
            record = json.loads(line)
            yield _messages(record), record
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f'{path}, line {number} is no prompt ({error}); allowed: {{"prompt": text}} or '
                f'{{"messages": [...]}}'
            ) from error


def _messages(record: Any) -> tuple[Message, ...]:
    if isinstance(prompt := record.get("prompt"), str) and prompt.strip():
        return ({"role": "user", "content": prompt},)
    messages = record["messages"]
    if not messages or not all(isinstance(message["content"], str) for message in messages):
        raise ValueError("messages without content")
    if messages[-1]["role"] != "user":
        raise ValueError(f"the last message is of the role {messages[-1]['role']}")
    return tuple({"role": str(m["role"]), "content": m["content"]} for m in messages)
