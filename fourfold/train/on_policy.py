"""Learning from one's own answers: reverse KL to teachers over the whole vocabulary, and what answers earned.

The cost of a position is sum_i w_i KL(student || teacher_i), as in the published on-policy distillation, plus
the policy's cost of grpo.py where there is a reward. Teachers' hidden states of a round are kept on disk and
not their logits, so that one teacher is in memory at a time; their heads are all there is of them while the
student learns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.tokenizer import Tokenizer
from fourfold.train.config import TrainConfig
from fourfold.train.data import IGNORE, Batch
from fourfold.train.divergence import head_cost, product
from fourfold.train.grpo import policy_cost
from fourfold.train.losses import CHUNK
from fourfold.train.objective import V4Objective
from fourfold.train.rollout import FOLDER, Answer, RolloutBatch, domains
from fourfold.train.teacher import Teacher, open_teacher
from fourfold.train.teacher_cache import CachedTeacher, fingerprint


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A teacher.  weights [domains] f32: of its divergence.  states: what it thinks of this round's
    answers."""

    weights: Tensor
    states: CachedTeacher
    head: Tensor


class Desk:
    """Seats one teacher at a time; the one who sits stays until another is called."""

    def __init__(self, open_one: Callable[[Path], Teacher]) -> None:
        self._open = open_one
        self._seated: tuple[Path, Teacher] | None = None

    def call(self, folder: Path) -> Teacher:
        """The teacher in `folder`."""
        if self._seated is None or self._seated[0] != folder:
            self._seated = None  # first, so that there are never two
            self._seated = folder, self._open(folder)
        return self._seated[1]


class RolloutObjective(V4Objective):
    """[on_policy] and [grpo].  "loss" is the surprise of the student at its own tokens, its entropy on
    average."""

    def __init__(
        self, config: TrainConfig, model_config: ModelConfig, tokenizer: Tokenizer, device: torch.device
    ) -> None:
        super().__init__(config, model_config, device)
        self.device = device
        desk = Desk(partial(open_teacher, tokenizer=tokenizer, device=device, dtype=self.dtype))
        self.judges = [self._judge(desk, folder, weights) for folder, weights in _weights(config).items()]
        self._order = [*self.judges]
        self._numbers: Mapping[str, float] = {}

    def _judge(self, desk: Desk, folder: Path, weights: Tensor) -> Judge:
        name = fingerprint(folder)
        kept = Path(self.config.run.dir) / FOLDER / f"teacher-{name[:12]}"
        states = CachedTeacher(kept, name, partial(desk.call, folder))
        states.let_go()
        return Judge(weights=weights, states=states, head=states.head.to(self.device))

    def begin_round(
        self, batches: list[RolloutBatch], answers: Sequence[Answer], numbers: Mapping[str, float]
    ) -> list[RolloutBatch]:
        """Ask the teachers, and note the student's own probabilities where its weights will have moved."""
        self._numbers = numbers
        for judge in self._order:
            asked = [torch.from_numpy(a.ids).long() for a in answers if judge.weights[a.domain] > 0]
            judge.states.renew(asked, self.device)
        self._order.reverse()  # who is in memory now is asked first in the next round
        if self.config.grpo.reward and len(batches) > 1:
            return [replace(batch, old=self._logprobs(batch.to(self.device)).cpu()) for batch in batches]
        return batches

    @torch.no_grad()
    def _logprobs(self, batch: Batch) -> Tensor:
        """[B, T] f32: log-probabilities of the targets, 0 where there is none."""
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with autocast, kernels.replaced(self.device.type, self.operations):
            hidden, _, _ = self.model.hidden(batch.ids, batch.segments)
        wanted = batch.targets != IGNORE
        found = torch.zeros(batch.ids.shape, device=self.device)
        rows, low = hidden[wanted].to(self.dtype), self.model.head.weight.to(self.dtype)
        chosen = batch.targets[wanted]
        parts = [
            product(part, low.mT).float().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
            for part, tokens in zip(rows.split(CHUNK), chosen.split(CHUNK), strict=True)
        ]
        found[wanted] = torch.cat(parts)
        return found

    def _next_token(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(batch, RolloutBatch)
        wanted = batch.targets != IGNORE
        chosen, owners = batch.targets[wanted], batch.domains.unsqueeze(1).expand_as(wanted)[wanted]
        advantage, old = batch.advantages[wanted], batch.old[wanted]
        theirs = [
            (
                judge.weights.to(self.device)[owners],
                self._states(judge, batch)[wanted],
                judge.head.to(self.dtype),
            )
            for judge in self.judges
        ]
        fresh = self.config.rollout.steps == 1  # then the probabilities of the round's begin are these

        def costs(logits: Tensor, part: slice) -> Tensor:
            logp = logits.log_softmax(-1)
            own = logp.gather(-1, chosen[part].unsqueeze(-1)).squeeze(-1)
            divergence = torch.zeros_like(own)
            for weights, states, head in theirs:
                if bool(weights[part].any()):
                    teacher = product(states[part].to(self.dtype), head.mT).float()
                    divergence = divergence + weights[part] * reverse_kl(logits, logp, teacher)
            before = own.detach() if fresh else old[part]
            cost, clipped = policy_cost(own, before, advantage[part], self.config.grpo.clip)
            return torch.stack([cost + divergence, -own, divergence, clipped])

        total, sums = head_cost(hidden[wanted], self.model.head.weight, costs, self.dtype)
        count = max(len(chosen), 1)
        _, surprise, kl, clipped = (sums / count).tolist()
        return total / count, {"loss": surprise, "kl": kl, "clipped": clipped}

    def _states(self, judge: Judge, batch: RolloutBatch) -> Tensor:
        """The teacher's hidden states [B, T, D'], 0 in rows of domains that it does not judge."""
        rows = judge.weights.to(batch.domains.device)[batch.domains] > 0
        found = torch.zeros(*batch.ids.shape, judge.states.width, dtype=torch.bfloat16, device=self.device)
        found[rows] = judge.states.hidden(batch.ids[rows], batch.segments[rows])
        return found

    def after_step(self) -> dict[str, float]:
        return super().after_step() | dict(self._numbers)


def reverse_kl(logits: Tensor, logp: Tensor, teacher: Tensor) -> Tensor:
    """KL(student || teacher) of each row.  [n, V] f32 logits and their log softmax, [n, V'] f32 logits ->
    [n].

    The first min(V, V') tokens are compared, as a vocabulary is padded differently in different models.
    """
    both = min(logits.shape[-1], teacher.shape[-1])
    mine = logp if both == logits.shape[-1] else logits[:, :both].log_softmax(-1)
    return (mine.exp() * (mine - teacher[:, :both].log_softmax(-1))).sum(-1)


def _weights(config: TrainConfig) -> dict[Path, Tensor]:
    """Folder of each teacher -> its weight in each domain, [domains] f32; the reference is one of them."""
    names = domains(config)
    entries = [(t.path, t.weight, t.domains or names) for t in config.on_policy.teachers]
    if config.grpo.kl:
        entries.append((config.grpo.reference or config.model.init_from, config.grpo.kl, names))
    found: dict[Path, Tensor] = {}
    for path, weight, judged in entries:
        own = found.setdefault(Path(path), torch.zeros(len(names)))
        own += weight * torch.tensor([float(name in judged) for name in names])
    return found
