"""Who is distilled from: a model that gives its last hidden states, which its head turns into logits.

Hidden states and not logits, because they are what can be kept: at V4's width and vocabulary they take a
thirtieth of the room.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fourfold.errors import ConfigError, TrainError
from fourfold.loading import load
from fourfold.model.layout import packed_rows
from fourfold.tokenizer import FILE_NAME, Tokenizer


class Teacher(Protocol):
    """head [V, D]: hidden states times it are logits."""

    head: Tensor

    def hidden(self, ids: Tensor, segments: Tensor) -> Tensor:
        """[B, T, D] at each of ids [B, T], where equal segments of a row are one sample."""
        ...


def open_teacher(folder: Path, tokenizer: Tokenizer, device: torch.device, dtype: torch.dtype) -> Teacher:
    """The V4 checkpoint in `folder`, or what transformers finds there (never with code of the folder's own).

    ConfigError: no model, or its tokenizer is another than the student's.
    """
    try:
        spec = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the teacher {str(folder)!r} holds no readable config.json ({error}); give the "
            "folder of a V4 checkpoint or of a causal language model of transformers"
        ) from error
    if (folder / FILE_NAME).exists():
        _same_tokenizer(folder, tokenizer)
    if isinstance(spec, dict) and spec.get("model_type") == "deepseek_v4":
        return V4Teacher(folder, device)
    return TransformersTeacher(folder, device, dtype)


def _same_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    theirs = Tokenizer(folder)
    ids = range(min(theirs.vocab_size, tokenizer.vocab_size))
    different = next((i for i in ids if theirs.decode([i]) != tokenizer.decode([i])), None)
    if different is not None:
        raise ConfigError(
            f"the teacher {folder} reads token {different} as {theirs.decode([different])!r}, the student "
            f"as {tokenizer.decode([different])!r}; distil from its answers instead (fourfold distil), or "
            "train with the teacher's tokenizer"
        )


class V4Teacher:
    """One of our own models, with its own kernels."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.model = load(folder, device, "fast")
        stored = self.model.head.weight
        if self.model.head.scale is not None:
            raise ConfigError(f"the teacher {folder} has a quantised head; allowed: bf16 or float32")
        self.head = stored.detach()

    @torch.no_grad()
    def hidden(self, ids: Tensor, segments: Tensor) -> Tensor:
        """As the protocol."""
        return self.model.hidden(ids, segments)[0]


class TransformersTeacher:
    """A causal language model of transformers.  Samples run apart, padded at their end."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        try:
            import transformers
        except ImportError as error:
            raise ConfigError(
                f"the teacher {folder} is no V4 checkpoint, and transformers is not installed: pip "
                "install transformers"
            ) from error
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, local_files_only=True
        )
        self.model = model.eval().to(device)
        self.head = self.model.get_output_embeddings().weight.detach()
        self._check()

    @torch.no_grad()
    def _check(self) -> None:
        """TrainError where logits are not the head's product alone: soft caps, scales, biases."""
        ids = torch.arange(4, device=self.head.device)[None]
        found = self.model(input_ids=ids).logits.float()
        expected = self._states(ids, torch.ones_like(ids)).float() @ self.head.float().mT
        if not torch.allclose(found, expected, atol=0.05 * float(found.std()), rtol=0.05):
            raise TrainError(
                f"{type(self.model).__name__} does more to its logits than to multiply by the head's weight; "
                "distil from its answers instead (fourfold distil)"
            )

    def _states(self, ids: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = self.model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    @torch.no_grad()
    def hidden(self, ids: Tensor, segments: Tensor) -> Tensor:
        """As the protocol."""
        rows = [[s.new for s in row] for row in packed_rows(segments)]
        samples = [part for row, lengths in zip(ids, rows, strict=True) for part in row.split(lengths)]
        padded = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)
        lengths = torch.tensor([len(sample) for sample in samples], device=ids.device)
        mask = (torch.arange(padded.shape[1], device=ids.device) < lengths[:, None]).long()
        return self._states(padded, mask)[mask.bool()].unflatten(0, ids.shape)
