"""Log probabilities of many texts, in batches whose logits fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fourfold.errors import RequestError
from fourfold.model.transformer import Transformer

LOGITS = 1 << 26
"""Most logits that exist at once: 256 MiB of float32."""
CALL_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A text whose tokens from index `start` on are scored.  start: at least 1; nothing predicts the "
    "first."""

    ids: Sequence[int]
    start: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """logprob: sum over the scored tokens, in nats.  greedy: each of them was the likeliest."""

    logprob: float
    tokens: int
    greedy: bool


@torch.inference_mode()
def score(
    model: Transformer, texts: Sequence[Scored], progress: Callable[[int], None] = lambda done: None
) -> list[Score]:
    """The scores of `texts`, in their order.  progress: called with the number of texts done.

    RequestError: a text with more tokens than the model has positions.
    """
    longest = model.config.max_position_embeddings
    for text in texts:
        if len(text.ids) > longest:
            raise RequestError(
                f"a text has {len(text.ids):,} tokens; this model has positions for {longest:,}"
            )
    most = max(1, min(CALL_TOKENS, LOGITS // model.config.vocab_size))
    found: dict[int, Score] = {}
    batch: list[int] = []
    for i in sorted(range(len(texts)), key=lambda i: len(texts[i].ids)):
        if batch and (len(batch) + 1) * len(texts[i].ids) > most:
            found |= zip(batch, _together(model, [texts[j] for j in batch], most), strict=True)
            batch = []
            progress(len(found))
        batch.append(i)
    if batch:
        found |= zip(batch, _together(model, [texts[j] for j in batch], most), strict=True)
        progress(len(found))
    return [found[i] for i in range(len(texts))]


def _together(model: Transformer, texts: Sequence[Scored], most: int) -> list[Score]:
    """Texts of about one length.  What pads the shorter ones lies behind them, where nothing sees it."""
    width = max(len(text.ids) for text in texts)
    ids = torch.zeros(len(texts), width, dtype=torch.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = torch.tensor(text.ids)
    picked, best = _logprobs(model, ids.to(model.device), max(1, most // len(texts)))
    scores = []
    for row, text in enumerate(texts):
        part = slice(max(text.start, 1) - 1, len(text.ids) - 1)
        logprob = float(picked[row, part].double().sum())
        scores.append(
            Score(logprob=logprob, tokens=part.stop - part.start, greedy=bool(best[row, part].all()))
        )
    return scores


def _logprobs(model: Transformer, ids: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """ids [B, T] -> of each token but the first: its log probability [B, T-1], whether it is the "
    "likeliest."""
    inputs, targets = ids[:, :-1], ids[:, 1:]
    if not targets.numel():
        return torch.zeros(targets.shape), torch.ones(targets.shape, dtype=torch.bool)
    cache = model.new_cache(len(ids)) if inputs.shape[1] > chunk else None
    picked, best = [], []
    for part, target in zip(inputs.split(chunk, dim=1), targets.split(chunk, dim=1), strict=True):
        logp = model(part, cache).logits.log_softmax(dim=-1)
        picked.append(logp.gather(2, target[..., None])[..., 0])
        best.append(logp.argmax(dim=-1) == target)
    return torch.cat(picked, dim=1).cpu(), torch.cat(best, dim=1).cpu()
