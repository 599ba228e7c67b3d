"""Questions: every prompt of the files, as often and in the settings that the configuration asks for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fourfold.distil.config import DistilConfig
from fourfold.errors import ConfigError
from fourfold.train.prompts import Message, read_prompts


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
    prompts = [
        messages for file in config.prompts.files for messages, _ in read_prompts(Path(file), "prompts.files")
    ]
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
