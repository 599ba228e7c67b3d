"""The sections of runs that learn from what the student writes itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourfold.errors import ConfigError
from fourfold.train.rewards import REWARDS

if TYPE_CHECKING:
    from fourfold.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PromptsFile:
    """One entry of rollout.prompts.

    path: .jsonl (objects with "prompt" or "messages", and what the reward reads) or .txt (one prompt a line).
    domain: a name by which teachers can be chosen.
    """

    path: str
    domain: str = ""


@dataclass(frozen=True, kw_only=True)
class RolloutSection:
    """[rollout]: the student answers prompts and learns from its own answers, by [on_policy], [grpo] or both.

    prompts: files of them; none: training on data.files.
    batch: prompts of a round.   samples: answers to each.   max_tokens: of an answer.
    steps: optimiser steps that divide a round's answers; above 1 the later ones learn from answers of
        weights that are a few steps old.
    temperature: of the draws.   seed: of the order of the prompts and of the draws.
    at_once: answers that are written side by side.
    """

    prompts: tuple[PromptsFile, ...] = ()
    batch: int = 32
    samples: int = 4
    max_tokens: int = 128
    steps: int = 1
    temperature: float = 1.0
    seed: int = 0
    at_once: int = 64


@dataclass(frozen=True, kw_only=True)
class OnPolicyTeacher:
    """One entry of on_policy.teachers.

    path: folder of a V4 checkpoint, or of a causal language model of transformers, with the student's
        tokenizer.
    weight: of its divergence.   domains: of the prompts that it judges answers to; none: of all.
    """

    path: str
    weight: float = 1.0
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OnPolicySection:
    """[on_policy]: at each token of an answer, sum_i weight_i KL(student || teacher_i) over the vocabulary.

    teachers: one or several; in memory there is one at a time.
    """

    teachers: tuple[OnPolicyTeacher, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GrpoSection:
    """[grpo]: answers that earn more than the others to their prompt become likelier (grpo.py).

    reward: "exact", "numeric" or "regex" (rewards.py); "" for none.
    clip: how far a token's probability may move from that of the round's begin, as a share, before it stops
        counting.
    kl: weight of KL(student || reference) at each token.
    reference: folder of a checkpoint; "" is model.init_from.
    """

    reward: str = ""
    clip: float = 0.2
    kl: float = 0.0
    reference: str = ""


def check_rollout(config: TrainConfig) -> None:
    """What the sections ask of each other.  ConfigError."""
    rollout, grpo = config.rollout, config.grpo
    teachers = config.on_policy.teachers
    if grpo.reward and grpo.reward not in REWARDS:
        raise ConfigError(f"grpo.reward is {grpo.reward!r}; allowed: {', '.join(REWARDS)}")
    if not rollout.prompts:
        if teachers or grpo.reward:
            raise ConfigError(
                "on_policy.teachers or grpo.reward is given without rollout.prompts; name files of prompts"
            )
        return
    if not (teachers or grpo.reward):
        raise ConfigError(
            "rollout.prompts is given without on_policy.teachers and grpo.reward; give one of them or both"
        )
    for key, low in (("batch", 1), ("samples", 2 if grpo.reward else 1), ("max_tokens", 1), ("at_once", 1)):
        if getattr(rollout, key) < low:
            raise ConfigError(f"rollout.{key} is {getattr(rollout, key)}; allowed here: {low} and more")
    if config.data.files or config.distil.teacher or config.model.kind != "v4":
        raise ConfigError(
            "rollout.prompts is given with data.files, distil.teacher or a model.kind other than v4; leave "
            "them out: the student learns from its own answers (data.held_out is still measured)"
        )
    if rollout.temperature <= 0 or (grpo.reward and rollout.temperature != 1.0):
        raise ConfigError(
            f"rollout.temperature is {rollout.temperature:g}; allowed: above 0, and 1 with grpo.reward, "
            "which compares the probabilities that answers were drawn with"
        )
    if not 0 < grpo.clip < 1 or grpo.kl < 0 or any(teacher.weight < 0 for teacher in teachers):
        raise ConfigError(
            f"grpo.clip is {grpo.clip:g}, grpo.kl {grpo.kl:g}; allowed: between 0 and 1, and 0 or more, as "
            "for the weights of teachers"
        )
    if grpo.kl and not (grpo.reference or config.model.init_from):
        raise ConfigError("grpo.kl is given without a grpo.reference; give one, or model.init_from")
    _check_steps(config)
    _check_domains(config)


def _check_steps(config: TrainConfig) -> None:
    """A checkpoint lies between two rounds: then all of a round follows from it."""
    steps, run = config.rollout.steps, config.run
    if steps < 1 or config.rollout.batch % steps:
        raise ConfigError(
            f"rollout.steps is {steps}; allowed: what divides the {config.rollout.batch} prompts of "
            "rollout.batch"
        )
    if steps > 1 and (run.seconds or run.checkpoint_seconds):
        raise ConfigError(
            f"run.seconds or run.checkpoint_seconds is given with rollout.steps {steps}; allowed with "
            "rollout.steps 1: give run.steps and run.checkpoint_every"
        )
    for key in ("steps", "checkpoint_every"):
        if getattr(run, key) % steps:
            raise ConfigError(
                f"run.{key} is {getattr(run, key)}; allowed: multiples of rollout.steps, {steps}"
            )


def _check_domains(config: TrainConfig) -> None:
    domains = {file.domain for file in config.rollout.prompts}
    teachers = config.on_policy.teachers
    if unknown := {name for teacher in teachers for name in teacher.domains} - domains:
        raise ConfigError(
            f"on_policy.teachers name the domains {', '.join(sorted(unknown))}; rollout.prompts has: "
            f"{', '.join(sorted(map(repr, domains)))}"
        )
    judged = {name for t in teachers if t.weight for name in (t.domains or domains)}
    if not config.grpo.reward and (left := domains - judged):
        raise ConfigError(f"no teacher judges the prompts of domain {sorted(left)[0]!r}; give it one")
