"""The tokens that a checkpoint is certified on: which, how many, and what too few of them leave out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.conformance.report import NotExercised
from fourfold.model.transformer import Transformer

TEXT = """Once upon a time there was a small lighthouse on a rock in the sea. Every evening its keeper, an
old woman with a grey coat, climbed the 112 steps, wiped the glass and lit the lamp. "Good night, ships," she
said. One winter the wind blew so hard that no boat could bring her bread. She had flour, water and salt, and
nobody to talk to but a seagull with a broken wing. She baked small loaves, shared them with the bird, and
told it what she knew: that the moon pulls the water up and lets it fall; that sailors count in knots; that a
light is worth nothing if it is not seen. When spring came the gull could fly again. It went away, and she
was sad for a week. Then a hundred gulls came back with it. What would you have said to them? She said:
"There is only one loaf, but the rock is large. Stay." """

_SHORT = 320  # tokens: two windows and a half of the published models, and two of their HCA blocks
_MEASURED = 128  # tokens at the end, whose logits and streams are compared
# Multiply-adds that reaching the indexer's first choice may cost: minutes on a slow device of each kind.
_WORK_CPU, _WORK_ACCELERATOR = 1e12, 1e14


@dataclass(frozen=True)
class Passage:
    """ids [1, T] on the model's device; the last `measured` of them are compared, the others come before."""

    ids: Tensor
    measured: int

    @property
    def context(self) -> int:
        """Tokens before the measured ones."""
        return self.ids.shape[1] - self.measured


def choose(model: Transformer, active: float) -> tuple[Passage, list[NotExercised]]:
    """The passage for this model, and what it leaves out.

    Long enough for the indexers to choose, if that is affordable. active: parameters that a token needs.
    """
    length, left_out = _length(model.config, active, model.device.type)
    measured = min(_MEASURED, length)
    return Passage(passage_ids(model, length, measured).to(model.device), measured), left_out


def choosing_queries(config: ModelConfig, passage: Passage) -> int:
    """Measured tokens that see more entries than their CSA layers keep."""
    first = _first_choice(config)
    total = passage.ids.shape[1]
    return 0 if first is None else min(passage.measured, max(total - first + 1, 0))


def _first_choice(config: ModelConfig) -> int | None:
    """Tokens after which a query sees one entry more than its indexer keeps; None without CSA layers."""
    kinds = zip(config.layer_kinds, config.layer_ratios, strict=True)
    ratios = [ratio for kind, ratio in kinds if kind == "csa"]
    return (config.index_topk + 1) * min(ratios) if ratios else None


def _length(config: ModelConfig, active: float, device: str) -> tuple[int, list[NotExercised]]:
    room = config.max_position_embeddings
    short, first = min(_SHORT, room), _first_choice(config)
    if first is None or first + _MEASURED <= short:
        return short, []
    if first > room:
        return short, [
            NotExercised("the indexer's choice", f"needs {first:,} tokens, the model has {room:,}")
        ]
    work = active * first
    limit = _WORK_CPU if device == "cpu" else _WORK_ACCELERATOR
    if work > limit:
        why = f"needs {first:,} tokens, {work:.0e} multiply-adds; done on {device} up to {limit:.0e}"
        return short, [NotExercised("the indexer's choice", why)]
    return min(first + _MEASURED, room), []


def passage_ids(model: Transformer, length: int, measured: int) -> Tensor:
    """Words of the text in any order, then the text itself; pseudo-random ids if there is no tokenizer.

    The measured end is language, which a trained model knows, and repeats nothing that it could copy.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (length,), generator=generator)
    if model.tokenizer is None:
        return ids.unsqueeze(0)
    words = TEXT.split()
    order = torch.randint(0, len(words), (length,), generator=generator).tolist()
    before = [model.config.bos_token_id, *model.tokenizer.encode(" ".join(words[i] for i in order))]
    text = model.tokenizer.encode(TEXT)[:measured]
    known = [i for i in before[: length - len(text)] + text if i < model.config.vocab_size]
    ids[length - len(known) :] = torch.tensor(known)
    return ids.unsqueeze(0)
