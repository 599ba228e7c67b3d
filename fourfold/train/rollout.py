"""Batches that the student writes itself: prompts, its answers, what they earned, cut into a round's steps.

A round's answers follow from its number and the weights at its begin, and a checkpoint always lies between
two rounds, so (round, 0) is all there is to resume; rounds that a killed run had begun are in its folder's
logs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fourfold.engine.sampler import mix
from fourfold.errors import TrainError
from fourfold.model.transformer import Transformer
from fourfold.protocol import Chat
from fourfold.train.chat_samples import EOS
from fourfold.train.config import TrainConfig
from fourfold.train.corpus import Encoder
from fourfold.train.data import Batch, PackedData, Piece, pack
from fourfold.train.grpo import advantages
from fourfold.train.policy import Ask, fingerprint, policy_of, write_answers
from fourfold.train.prompts import Message, read_prompts
from fourfold.train.rewards import REWARDS, Reward
from fourfold.train.rollout_log import RolloutLog

FOLDER = "rollouts"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """ids: as the model reads it.  wanted: what its reward compares with."""

    ids: tuple[int, ...]
    domain: str
    wanted: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer(Piece):
    """An answer behind its prompt.  domain: index of its name.   reward: what it earned."""

    domain: int
    reward: float


@dataclass(frozen=True, kw_only=True)
class RolloutBatch(Batch):
    """A batch of answers; targets are their tokens and their ends.

    domains [B] int64: of a row, an index into those of rollout.prompts, in order of their names.
    advantages, old [B, T] f32, at targets: the advantage of the answer, shared out among its tokens so that
    the mean over all targets is that over answers; log-probability of the target at the round's begin, 0
    before it is known.
    """

    domains: Tensor
    advantages: Tensor
    old: Tensor


class Learner(Protocol):
    """Who writes the answers and learns from them."""

    model: Transformer
    formats: Mapping[str, str]

    def begin_round(
        self, batches: list[RolloutBatch], answers: Sequence[Answer], numbers: Mapping[str, float]
    ) -> list[RolloutBatch]:
        """What is done before the first step of a round.  numbers: columns for metrics.csv."""
        ...


def domains(config: TrainConfig) -> list[str]:
    """Names of the domains, in the order of RolloutBatch.domains."""
    return sorted({file.domain for file in config.rollout.prompts})


class Rollouts:
    """An endless stream of batches of answers, like PackedData of samples."""

    def __init__(
        self,
        config: TrainConfig,
        encoder: Encoder,
        learner: Learner,
        rounded: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """rounded: weights inside are as they are trained now.  ConfigError, TrainError: prompts are not
        usable."""
        self.config, self.section = config, config.rollout
        self.tokenizer, self.learner, self.rounded = encoder.tokenizer, learner, rounded
        self.folder = Path(config.run.dir) / FOLDER
        self.reward: Reward | None = REWARDS[config.grpo.reward] if config.grpo.reward else None
        self.domains = domains(config)
        self.prompts = self._read()
        length = config.data.sequence_length
        self._rows = PackedData(
            [], length=length, batch_size=1, answers_only=True, pad=encoder.pad, seed=self.section.seed
        )
        self._end = encoder.marks[EOS]
        self.position = (0, 0)
        self._batches: list[RolloutBatch] = []

    def _read(self) -> list[Prompt]:
        found = [
            self._prompt(messages, record, file.domain, f"{file.path}, prompt {number}")
            for file in self.section.prompts
            for number, (messages, record) in enumerate(read_prompts(Path(file.path), "rollout.prompts"), 1)
        ]
        if not found:
            raise TrainError(f"no prompts in {', '.join(file.path for file in self.section.prompts)}")
        return found

    def _prompt(
        self, messages: Sequence[Message], record: Mapping[str, Any], domain: str, where: str
    ) -> Prompt:
        chat = Chat(messages=messages, format=self.config.data.prompt_format)
        ids = tuple(chat.prompt().encode(self.tokenizer))
        length = self.config.data.sequence_length
        room = length - self.section.max_tokens - 1
        if len(ids) > room:
            raise TrainError(
                f"{where} has {len(ids)} tokens, and data.sequence_length {length} has room for {room} "
                "beside rollout.max_tokens; raise the one or lower the other"
            )
        if self.reward is None:
            return Prompt(ids=ids, domain=domain)
        try:
            return Prompt(ids=ids, domain=domain, wanted=self.reward.wanted(record))
        except ValueError as error:
            reward = self.config.grpo.reward
            raise TrainError(f"{where} is none for grpo.reward {reward}: {error}") from error

    def describe(self) -> str:
        """One line for the start of a run."""
        answers = self.section.batch * self.section.samples
        return f"{len(self.prompts):,} prompts; a round has {answers} answers and {self.section.steps} steps"

    def fingerprint(self) -> str:
        """Changes with the prompts and all that answers depend on but the weights."""
        settings = {**asdict(self.section), "at_once": 0, "reward": self.config.grpo.reward}
        digest = hashlib.sha256(repr((settings, self.config.data.sequence_length)).encode())
        for prompt in self.prompts:
            digest.update(repr((prompt.ids, prompt.domain, prompt.wanted)).encode())
        return digest.hexdigest()

    def next(self) -> RolloutBatch:
        """The next step's answers; the first of a round writes all of them."""
        number, step = self.position
        if step == 0:
            self._batches = self._round(number)
        assert self._batches, "a checkpoint lies between two rounds"
        batch = self._batches[step]
        self.position = (number, step + 1) if step + 1 < self.section.steps else (number + 1, 0)
        return batch

    def _chosen(self, number: int) -> list[int]:
        """The prompts of a round: all have had their turn before one comes again, in another order."""
        section, count = self.section, len(self.prompts)
        orders: dict[int, np.ndarray] = {}
        found = []
        for place in range(number * section.batch, (number + 1) * section.batch):
            epoch, index = divmod(place, count)
            if epoch not in orders:
                orders[epoch] = np.random.default_rng((section.seed, epoch)).permutation(count)
            found.append(int(orders[epoch][index]))
        return found

    def _round(self, number: int) -> list[RolloutBatch]:
        begun = time.perf_counter()
        section = self.section
        chosen = [self.prompts[i] for i in self._chosen(number)]
        round_seed = mix(section.seed, number)
        asks = [
            Ask(prompt=prompt.ids, seed=mix(round_seed, place * section.samples + i) >> 1)
            for place, prompt in enumerate(chosen)
            for i in range(section.samples)
        ]
        with self.rounded():
            policy = policy_of(self.learner.model, self.learner.formats)
        owner = f"{fingerprint(policy)} {self.fingerprint()}"
        log = RolloutLog(self.folder / f"{number:08d}.jsonl", owner)
        try:
            write_answers(
                policy, self.tokenizer, asks, log,
                max_tokens=section.max_tokens, temperature=section.temperature, at_once=section.at_once,
            )  # fmt: skip
        finally:
            log.close()
        each = [prompt for prompt in chosen for _ in range(section.samples)]
        answers = [self._answer(prompt, log, number) for number, prompt in enumerate(each)]
        numbers = {
            "reward": float(np.mean([answer.reward for answer in answers])),
            "answer_tokens": float(np.mean([answer.learn.sum() for answer in answers])),
            "cut_off": float(np.mean([log.ended[i] == "length" for i in range(len(answers))])),
            "rollout_seconds": time.perf_counter() - begun,
        }
        gained = advantages(torch.tensor([answer.reward for answer in answers]).view(-1, section.samples))
        per_step = len(answers) // section.steps
        batches = [
            self._batch(
                answers[begin : begin + per_step], gained.flatten()[begin : begin + per_step].tolist()
            )
            for begin in range(0, len(answers), per_step)
        ]
        with self.rounded():
            return self.learner.begin_round(batches, answers, numbers)

    def _answer(self, prompt: Prompt, log: RolloutLog, number: int) -> Answer:
        said, complete = log.tokens.get(number, []), log.ended[number] == "stop"
        ids = [*prompt.ids, *said, *([self._end] if complete else [])]
        learn = np.arange(len(ids)) >= len(prompt.ids)
        reward = 0.0
        if self.reward is not None and complete:  # what was cut off earns nothing: an answer must end
            reward = self.reward(self.tokenizer.decode(said), prompt.wanted)
        return Answer(
            ids=np.asarray(ids, dtype=np.int32),
            learn=learn,
            domain=self.domains.index(prompt.domain),
            reward=reward,
        )

    def _batch(self, answers: list[Answer], gained: list[float]) -> RolloutBatch:
        """Answers of a step in rows, each of one domain."""
        rows: list[list[Piece]] = []
        owners: list[int] = []
        for domain in range(len(self.domains)):
            packed = pack([a for a in answers if a.domain == domain], self._rows.length)
            rows += packed
            owners += [domain] * len(packed)
        spare = -len(rows) % self.config.data.accumulate
        batch = self._rows.batch(rows + [[]] * spare)
        share = {
            id(a): g * batch.learnt / (len(answers) * a.learn.sum())
            for a, g in zip(answers, gained, strict=True)
        }
        gain = np.zeros(batch.ids.shape, dtype=np.float32)
        for row, pieces in zip(gain, rows, strict=False):
            start = 0
            for piece in pieces:
                row[start : start + len(piece.ids)] = share[id(piece)]
                start += len(piece.ids)
        return RolloutBatch(
            **vars(batch),
            domains=torch.tensor(owners + [0] * spare),
            advantages=torch.from_numpy(gain),
            old=torch.zeros(batch.ids.shape),
        )
