"""The configuration of `fourfold distil`: one strict TOML file, read into frozen dataclasses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fourfold.errors import ConfigError
from fourfold.train.strict import build, read_toml

PROTOCOLS = ("openai", "anthropic")


@dataclass(frozen=True, kw_only=True)
class TeacherSection:
    """[teacher]: who is asked.

    url: of the API, up to and without /chat/completions or /messages.   model: its name there.
    protocol: "openai" (chat completions) or "anthropic" (messages).
    key_env: environment variable that holds the key; "" sends none.
    terms: what its licence or terms say about training on its answers, in your words; goes into every record.
    accepted: true once you have read them and may do this.  Nothing is asked before.
    input_price, output_price: of a million tokens, in the currency of budget.cost.
    """

    url: str
    model: str
    terms: str
    accepted: bool = False
    protocol: str = "openai"
    key_env: str = ""
    input_price: float = 0.0
    output_price: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PromptsSection:
    """[prompts]: what is asked.

    files: .jsonl with {"prompt": text} or {"messages": [...]}, or .txt with one prompt a line.
    answers: different answers to each prompt.   limit: prompts taken; 0 takes all.
    systems: system texts (personas); each prompt gets them in turn, after the one without if `plain`.
    """

    files: tuple[str, ...]
    answers: int = 1
    limit: int = 0
    systems: tuple[str, ...] = ()
    plain: bool = True


@dataclass(frozen=True, kw_only=True)
class SamplingSection:
    """[sampling]: how the teacher answers.

    temperatures: each answer to a prompt takes the next of them.   top_p: as usual.
    max_tokens: of an answer; one that was cut off is not kept.   seed: of the first answer; others count on.
    thinking: ask for reasoning and keep it in the records; "strip" asks and leaves it out.
    """

    temperatures: tuple[float, ...] = (1.0,)
    top_p: float = 1.0
    max_tokens: int = 1024
    seed: int = 0
    thinking: Literal["off", "keep", "strip"] = "off"


@dataclass(frozen=True, kw_only=True)
class BudgetSection:
    """[budget]: how fast, how long, how much.

    cost: the most that may be spent, by the teacher's prices and the tokens that it reports; 0: no limit.
    concurrency: questions under way at once.   per_minute: questions begun a minute; 0: no limit.
    attempts: of one question, when the teacher is busy or the line breaks.   timeout: of each, seconds.
    """

    cost: float = 0.0
    concurrency: int = 8
    per_minute: int = 0
    attempts: int = 5
    timeout: float = 300.0


@dataclass(frozen=True, kw_only=True)
class FiltersSection:
    """[filters]: what is kept of the answers.

    min_chars, max_chars: length of an answer; max 0: any.
    refusals: regular expressions; an answer that one of them finds, whatever the case, is a refusal.
    script: "latin" keeps answers whose letters are Latin for 9 in 10; "" keeps all.
    repeated: most of an answer's 4-word groups that may occur in it before.
    near_duplicate: answers with this share of 3-word groups in common with an earlier one go; 1: equal ones.
    judge: a question to the teacher about each answer, with {prompt} and {answer} in it, that it answers
        with a number from 1 to 10; "" asks nothing.   judge_least: the least number that is kept.
    """

    min_chars: int = 1
    max_chars: int = 0
    refusals: tuple[str, ...] = (
        r"\bas an ai\b",
        r"\bi(?:'m| am) sorry, (?:but )?i can(?:'t|not)\b",
        r"\bi can(?:'t|not) (?:assist|help) with\b",
    )
    script: str = ""
    repeated: float = 0.3
    near_duplicate: float = 0.8
    judge: str = ""
    judge_least: int = 6


@dataclass(frozen=True, kw_only=True)
class StudentSection:
    """[student]: who learns from the data set; without `train` only the data set is made.

    train: a training configuration (fourfold train); its data.files become the data set.
    tasks: files of `fourfold eval` by which it is measured before and after.
    """

    train: str = ""
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """The whole file.  dir: folder of the data set and of all that is needed to go on."""

    dir: str
    teacher: TeacherSection
    prompts: PromptsSection
    sampling: SamplingSection = field(default_factory=SamplingSection)
    budget: BudgetSection = field(default_factory=BudgetSection)
    filters: FiltersSection = field(default_factory=FiltersSection)
    student: StudentSection = field(default_factory=StudentSection)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DistilConfig:
        """From parsed TOML.  Raises ConfigError naming a key, a type or a value that is not allowed."""
        config = build(cls, values, "")
        _check(config)
        return config


def load_distil_config(path: str | Path, overrides: Sequence[str] = ()) -> DistilConfig:
    """Read CONFIG.toml with `section.key=value` overrides.  Paths are relative to the working directory."""
    return DistilConfig.from_dict(read_toml(path, overrides))


def _check(config: DistilConfig) -> None:
    teacher, budget, filters, sampling = config.teacher, config.budget, config.filters, config.sampling
    if teacher.protocol not in PROTOCOLS:
        raise ConfigError(f"teacher.protocol is {teacher.protocol!r}; allowed: {', '.join(PROTOCOLS)}")
    if not teacher.url.startswith(("http://", "https://")):
        raise ConfigError(f"teacher.url is {teacher.url!r}; allowed: a URL with http:// or https://")
    if not teacher.terms.strip():
        raise ConfigError("teacher.terms is empty; write what its licence or terms say about its answers")
    if sampling.thinking not in ("off", "keep", "strip"):
        raise ConfigError(f"sampling.thinking is {sampling.thinking!r}; allowed: off, keep, strip")
    if filters.script not in ("", "latin"):
        raise ConfigError(f"filters.script is {filters.script!r}; allowed: latin, or nothing")
    for name, value, low in (
        ("prompts.answers", config.prompts.answers, 1),
        ("prompts.limit", config.prompts.limit, 0),
        ("sampling.max_tokens", sampling.max_tokens, 1),
        ("budget.concurrency", budget.concurrency, 1),
        ("budget.per_minute", budget.per_minute, 0),
        ("budget.attempts", budget.attempts, 1),
        ("budget.cost", budget.cost, 0),
        ("teacher.input_price", teacher.input_price, 0),
        ("teacher.output_price", teacher.output_price, 0),
    ):
        if value < low:
            raise ConfigError(f"{name} is {value}; allowed: {low} and more")
    if budget.cost and not (teacher.input_price or teacher.output_price):
        raise ConfigError(
            "budget.cost is given without teacher.input_price and output_price; give the prices"
        )
    if not (config.prompts.files and sampling.temperatures):
        raise ConfigError("prompts.files or sampling.temperatures is empty; give at least one of each")
    for pattern in filters.refusals:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"filters.refusals: {pattern!r} is no regular expression ({error})") from error
