"""Reference attention and index selection: exact, and linear in memory whatever the context.

Queries go in blocks.  A block looks at the union of its rows' ranges, a short slice of the window and the
prefix of the compressed entries, under a mask; only where an indexer chose few of many entries are they
gathered.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fourfold.kernels.composed import once
from fourfold.kernels.formats import Rounding, round_input

_QUERY_BLOCK = 256
_SCORES = 1 << 25
"""Elements that one block's score matrix or gathered entries may have (128 MiB of float32)."""


def sparse_attention(
    q: Tensor,
    window: Tensor,
    window_range: Tensor,
    entries: Tensor | None,
    entry_range: Tensor | None,
    entry_index: Tensor | None,
    sink: Tensor,
    scale: float,
    rounding: Rounding = Rounding.NONE,
) -> Tensor:
    return attend_in_blocks(
        ranged, q, window, window_range, entries, entry_range, entry_index, sink, scale, rounding
    )


Source = tuple[Tensor, Tensor, Tensor]
"""Unscaled scores [B, H, t, L], mask [B, 1, t, L], and values [B, L, C] or [B, t, L, C]."""


def attend_in_blocks(
    see: Callable[[Tensor, Tensor, Tensor], Source],
    q: Tensor,
    window: Tensor,
    window_range: Tensor,
    entries: Tensor | None,
    entry_range: Tensor | None,
    entry_index: Tensor | None,
    sink: Tensor,
    scale: float,
    rounding: Rounding,
) -> Tensor:
    """As `sparse_attention`; `see` (as `ranged`) says how queries meet the rows that are given by ranges."""
    dtype = q.dtype
    entries = None if entries is None else once(entries)
    q = round_input(q.float(), rounding)
    batch, tokens, heads, width = q.shape
    gathers = entries is not None and entry_index is not None and _gathering_pays(entries, entry_index)
    per_query = batch * heads * (window_range.shape[1] + (0 if entries is None else entries.shape[1]))
    if gathers:
        assert entry_index is not None
        per_query = batch * entry_index.shape[-1] * max(width, heads)
    block = max(1, min(_QUERY_BLOCK, _SCORES // max(per_query, 1)))
    parts = []
    for start in range(0, tokens, block):
        rows = slice(start, start + block)
        sources = [see(q[:, rows], window, window_range[:, rows])]
        if entries is not None and entry_index is not None:
            choose = _gathered if gathers else _indexed
            sources.append(choose(q[:, rows], entries, entry_index[:, rows]))
        elif entries is not None and entry_range is not None:
            sources.append(see(q[:, rows], entries, entry_range[:, rows]))
        parts.append(_attend(sources, sink, scale, rounding).to(dtype))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _gathering_pays(entries: Tensor, index: Tensor) -> bool:
    return entries.shape[1] > 4 * index.shape[-1]


def ranged(q: Tensor, kv: Tensor, rows: Tensor) -> Source:
    """Scores of the rows from the first that any query sees to the last."""
    low, high = _bounds(rows)
    kv = kv[:, low:high].to(torch.float32)
    position = torch.arange(low, max(high, low), device=q.device)
    mask = (position >= rows[..., :1]) & (position < rows[..., 1:])
    return _shared_scores(q, kv), mask.unsqueeze(1), kv


def _bounds(rows: Tensor) -> tuple[int, int]:
    """The first row that any query sees, and the last and one: asks the device."""
    return int(rows[..., 0].min()), int(rows[..., 1].max())


def whole(q: Tensor, kv: Tensor, rows: Tensor) -> Source:
    """Scores of all rows: more arithmetic than `ranged`, and no question to the device."""
    position = torch.arange(kv.shape[1], device=q.device)
    mask = (position >= rows[..., :1]) & (position < rows[..., 1:])
    kv = kv.to(torch.float32)
    return _shared_scores(q, kv), mask.unsqueeze(1), kv


def _indexed(q: Tensor, kv: Tensor, index: Tensor) -> Source:
    count = kv.shape[1]
    mask = torch.zeros(*index.shape[:2], count + 1, dtype=torch.bool, device=q.device)
    # Absent choices (-1) land in an extra column that is cut off.
    mask.scatter_(-1, index.where(index >= 0, count), True)
    kv = kv.to(torch.float32)
    return _shared_scores(q, kv), mask[..., :count].unsqueeze(1), kv


def _gathered(q: Tensor, kv: Tensor, index: Tensor) -> Source:
    batch = torch.arange(kv.shape[0], device=q.device)[:, None, None]
    chosen = kv[batch, index.clamp(0, kv.shape[1] - 1)].to(torch.float32)
    scores = torch.einsum("bthc,btkc->bhtk", q.to(torch.float32), chosen)
    return scores, (index >= 0).unsqueeze(1), chosen


def _shared_scores(q: Tensor, kv: Tensor) -> Tensor:
    return q.transpose(1, 2).to(torch.float32) @ kv.transpose(1, 2).unsqueeze(1)


def _attend(sources: list[Source], sink: Tensor, scale: float, rounding: Rounding) -> Tensor:
    masked = [(s.float() * scale).masked_fill(~mask, float("-inf")) for s, mask, _ in sources]
    batch, heads, tokens = masked[0].shape[:3]
    column = sink.view(1, heads, 1, 1).expand(batch, heads, tokens, 1).float()
    weights = round_input(torch.cat([*masked, column], dim=-1).softmax(dim=-1), rounding)
    out = None
    begin = 0
    for scores, _, values in sources:
        p = weights[..., begin : begin + scores.shape[-1]]
        begin += scores.shape[-1]
        if values.dim() == 3:
            part = (p @ values.unsqueeze(1)).transpose(1, 2)
        else:
            part = torch.einsum("bhtk,btkc->bthc", p, values)
        out = part if out is None else out + part
    assert out is not None
    return out


def index_topk(q: Tensor, weights: Tensor, keys: Tensor, visible: Tensor, k: int) -> Tensor:
    batch, tokens, heads, _ = q.shape
    count = keys.shape[1]
    keys = keys.to(torch.float32).transpose(1, 2).unsqueeze(1)
    block = max(1, min(_QUERY_BLOCK, _SCORES // max(batch * heads * count, 1)))
    parts = []
    for start in range(0, tokens, block):
        rows = slice(start, start + block)
        scores = (q[:, rows].transpose(1, 2).to(torch.float32) @ keys).relu()
        scores = torch.einsum("bhts,bth->bts", scores, weights[:, rows].to(torch.float32))
        parts.append(_best_visible(scores, visible[:, rows], k))
    return torch.cat(parts, dim=1)


def _best_visible(scores: Tensor, visible: Tensor, k: int) -> Tensor:
    """Positions of the k largest visible scores, ascending, -1 padded; ties to the lower position."""
    count = scores.shape[-1]
    position = torch.arange(count, device=scores.device)
    mask = (position >= visible[..., :1]) & (position < visible[..., 1:])
    scores = scores.masked_fill(~mask, float("-inf"))
    kept = min(k, count)
    threshold = scores.topk(kept, dim=-1).values[..., -1:]
    above = scores > threshold
    tied = (scores == threshold) & mask
    room = kept - above.sum(-1, keepdim=True)
    chosen = above | (tied & (_count(tied) <= room))
    # Each chosen position goes to its rank; all others to one more column, which is cut off.
    rank = torch.where(chosen, _count(chosen) - 1, k).to(torch.int64)
    index = rank.new_full((*rank.shape[:-1], k + 1), -1)
    return index.scatter_(-1, rank, position.expand_as(rank))[..., :k]


def _count(mask: Tensor) -> Tensor:
    """How many are true up to each, itself included; int32, which every chip adds."""
    return mask.to(torch.int32).cumsum(-1, dtype=torch.int32)
