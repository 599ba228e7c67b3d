"""A student learns a teacher's next-token distributions: the V4 objective with another main loss."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.tokenizer import Tokenizer
from fourfold.train.config import TrainConfig
from fourfold.train.data import Batch, PackedData, Stream
from fourfold.train.divergence import Divergence, head_divergence
from fourfold.train.objective import V4Objective
from fourfold.train.record import Progress
from fourfold.train.teacher import Teacher, open_teacher
from fourfold.train.teacher_cache import CachedTeacher, fingerprint


class DistilObjective(V4Objective):
    """[distil]: divergence from the teacher at every position with a target, beside the other losses.

    "loss" stays the cross-entropy with the text, so that runs with and without a teacher compare.
    """

    def __init__(
        self, config: TrainConfig, model_config: ModelConfig, tokenizer: Tokenizer, device: torch.device
    ) -> None:
        super().__init__(config, model_config, device)
        section = config.distil
        self.divergence = Divergence(
            share=section.share,
            reverse=section.direction == "reverse",
            top_k=section.top_k,
            temperature=section.temperature,
        )
        self.device = device
        folder = Path(section.teacher)

        def ask() -> Teacher:
            return open_teacher(folder, tokenizer, device, self.dtype)

        self.teacher: Teacher | CachedTeacher = (
            CachedTeacher(Path(section.cache), fingerprint(folder), ask) if section.cache else ask()
        )
        self.their_head = self.teacher.head.to(device)

    def prepare(self, data: Stream, progress: Progress) -> None:
        """Fill the cache of hidden states, if there is one."""
        if not isinstance(self.teacher, CachedTeacher):
            return
        assert isinstance(data, PackedData)
        samples = self.teacher.missing(torch.from_numpy(ids).long() for ids in data.pieces())
        if not samples:
            return
        tokens = sum(map(len, samples))
        progress.say(
            f"fourfold: asking the teacher about {tokens:,} tokens; its hidden states take "
            f"{self.teacher.size_of(samples) / 1e6:,.0f} MB in {self.teacher.folder}"
        )
        self.teacher.fill(samples, self.device, lambda done: progress.part("teacher", done, tokens))

    def _next_token(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast(self.device.type, enabled=False):
            theirs = self.teacher.hidden(batch.ids, batch.segments)
        total, kl, entropy = head_divergence(
            hidden,
            self.model.head.weight,
            theirs,
            self.their_head,
            batch.targets,
            self.divergence,
            self.dtype,
        )
        return total, {"loss": entropy.item(), "kl": kl.item()}
