"""Questions: every prompt of the files, as often and in the settings that the configuration asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fourfold.distil.config import DistilConfig
from fourfold.errors import ConfigError

Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is sent to the teacher, apart from who it is."""

    messages: tuple[Message, ...]
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    thinking: bool

    def key(self, teacher: str) -> str:
        """Of the record that answers it: the same question to the same teacher is asked once."""
        text = json.dumps([teacher, asdict(self)], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def questions(config: DistilConfig) -> list[Question]:
    """All of them, in the order of the files.  ConfigError names a file and line that holds no prompt."""
    sampling, found = config.sampling, []
    systems = ([None] if config.prompts.plain or not config.prompts.systems else []) + [
        *config.prompts.systems
    ]
    prompts = [messages for file in config.prompts.files for messages in _read(Path(file))]
    for number, messages in enumerate(prompts[: config.prompts.limit or None]):
        for answer in range(config.prompts.answers):
            system = systems[(number + answer) % len(systems)]
            found.append(
                Question(
                    messages=(*([{"role": "system", "content": system}] if system else []), *messages),
                    temperature=sampling.temperatures[answer % len(sampling.temperatures)],
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_tokens,
                    seed=sampling.seed + answer,
                    thinking=sampling.thinking != "off",
                )
            )
    if not found:
        raise ConfigError(f"no prompts in {', '.join(config.prompts.files)}")
    return found


def _read(path: Path) -> Iterator[tuple[Message, ...]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts.files: cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix == ".txt":
            yield ({"role": "user", "content": line.strip()},)
            continue
        try:
            yield _messages(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
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
