"""T2: attention over a window and compressed entries with a sink, by npu_sparse_attn_sharedkv; decode steps.

The operator reads two paged caches by positions and keeps causality itself.  We have neither positions nor
its pages here, but rows that are seen, so each call lays them out as a sequence that sees just these:

* the window, moved so that its seen rows come first, is the block of each row's last 128 positions;
* the entries, gathered, lie in pages of their own.  Up to 1024 of them are chosen by index, at ratio 4; more
  (V4's ratio 128 beyond 128K tokens) are all that a sequence of 128 times their number sees.

A sequence shorter than the window is as long as what it sees of it: there its positions are the true ones,
and it has no more entries than it may see at ratio 4.  Limits are those of the operator's documentation in
cann-recipes-infer (August 2026).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.kernels.ascend.forms import Form
from fourfold.kernels.ascend.public import A2_A3, draw
from fourfold.kernels.composed import once
from fourfold.kernels.formats import Rounding

BOUND = 5e-2
"""How near a trial must come: a step of bf16 at the largest values, and softmax weights rounded to bf16."""
_WINDOW, _WIDTH = 128, 512
_HEADS = 64, 128
_CHOSEN = 512, 1024  # how many indices a query may have
_PAGE = 16  # divides the size of every page


@dataclass(frozen=True)
class _Entries:
    """pages [P, size, 1, C] and their table [B, p] int32; ratio; length [B] int64 of each sequence, at most
    `longest`; indices [B, 1, K] int32 of the chosen, None: all."""

    pages: Tensor
    table: Tensor
    ratio: int
    length: Tensor
    longest: int
    indices: Tensor | None

    @property
    def arguments(self) -> dict[str, Tensor | None]:
        """Of the operator."""
        return {"cmp_kv": self.pages, "cmp_block_table": self.table, "cmp_sparse_indices": self.indices}


def _attention(space: str) -> Callable[..., Tensor]:
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
        batch, heads = q.shape[0], q.shape[2]
        start = window_range[:, 0, :1]
        seen = _WINDOW - start[:, 0]
        found = None
        if entries is not None:
            assert entry_index is not None
            found = _lay_out(entries, entry_index[:, 0], seen)
        longest = _WINDOW if found is None else found.longest
        common = {
            "cu_seqlens_q": torch.arange(batch + 1, dtype=torch.int32, device=q.device),
            "seqused_kv": (seen if found is None else found.length).to(torch.int32),
            "cmp_ratio": 1 if found is None else found.ratio,
            "ori_mask_mode": 4,  # a band
            "cmp_mask_mode": 3,  # causal
            "ori_win_left": _WINDOW - 1,
            "ori_win_right": 0,
            "layout_q": "TND",
            "layout_kv": "PA_ND",
        }
        operators = getattr(torch.ops, space)
        metadata = operators.npu_sparse_attn_sharedkv_metadata.default(
            num_heads_q=heads, num_heads_kv=1, head_dim=_WIDTH, batch_size=batch, max_seqlen_q=1,
            max_seqlen_kv=longest,
            cmp_topk=0 if found is None or found.indices is None else found.indices.shape[-1],
            has_ori_kv=True, has_cmp_kv=found is not None, device=str(q.device), **common,
        )  # fmt: skip
        blocks = -(-longest // _WINDOW)
        table = torch.arange(batch, dtype=torch.int32, device=q.device)[:, None]
        y: Tensor = operators.npu_sparse_attn_sharedkv.default(
            q[:, 0].contiguous(),
            ori_kv=_seen_first(window, start).unsqueeze(2),
            ori_block_table=table.expand(-1, blocks).contiguous(),  # of which each row has one
            sinks=sink.float(),
            metadata=metadata,
            softmax_scale=scale,
            **common,
            **({} if found is None else found.arguments),
        )[0]
        return y.unsqueeze(1)

    return sparse_attention


def _seen_first(window: Tensor, start: Tensor) -> Tensor:
    """window [B, W, C] from row start [B, 1] on; what comes after its end is not seen."""
    rows = (torch.arange(_WINDOW, device=window.device) + start).clamp_max(_WINDOW - 1)
    return window.gather(1, rows.unsqueeze(-1).expand(-1, -1, window.shape[2]))


def _lay_out(entries: Tensor, index: Tensor, seen: Tensor) -> _Entries:
    """entries [B, S, C], index [B, K] rows of them, -1 behind the last; seen [B] rows of the window."""
    batch, k = index.shape
    room = next((most for most in _CHOSEN if k <= most), -(-k // _PAGE) * _PAGE)
    present = index >= 0
    page = _WINDOW if room % _WINDOW == 0 else _PAGE
    pages = F.pad(_gathered(entries, index), (0, 0, 0, room - k)).view(-1, page, 1, entries.shape[2])
    table = torch.arange(len(pages), dtype=torch.int32, device=index.device).view(batch, -1)
    if room > _CHOSEN[-1]:
        count = present.sum(dim=1)
        length = torch.where(count > 0, count * _WINDOW, seen)
        return _Entries(pages, table, _WINDOW, length, room * _WINDOW, None)
    numbers = torch.arange(k, dtype=torch.int32, device=index.device).where(present, -1)
    length = torch.where(seen < _WINDOW, seen, 4 * room)
    return _Entries(pages, table, 4, length, 4 * room, F.pad(numbers, (0, room - k), value=-1).unsqueeze(1))


def _gathered(entries: Tensor, index: Tensor) -> Tensor:
    """[B, K, C]; any row where the index is -1."""
    stored = once(entries)
    first = torch.arange(len(index), device=index.device)[:, None] * stored.shape[1]
    rows = index.clamp(0, stored.shape[1] - 1) + (first if len(stored) > 1 else 0)
    return stored.flatten(0, 1).index_select(0, rows.flatten()).view(*index.shape, -1)


def _is_decode(
    q: Tensor,
    window: Tensor,
    window_range: Tensor,
    entries: Tensor | None,
    entry_range: Tensor | None,
    entry_index: Tensor | None,
    *_: Any,
) -> bool:
    """One bf16 query a sequence whose window ends with it, as a captured step has them."""
    alike = q.dtype == window.dtype == torch.bfloat16 and q.shape[1] == 1
    return alike and window.shape[1] == _WINDOW and (entries is None or entry_index is not None)


def _limit(q: Tensor, *_: object) -> str | None:
    if q.shape[2] in _HEADS and q.shape[3] == _WIDTH:
        return None
    return f"{q.shape[2]} heads of {q.shape[3]}, allowed: 64 or 128 of {_WIDTH}"


def trial(entries: int = 600, chosen: int = 512) -> tuple[Any, ...]:
    """Arguments of sparse_attention: sequences longer and shorter than the window."""
    start = torch.tensor([0, 90, 0, 127])
    window_range = torch.stack([start, torch.full_like(start, _WINDOW)], dim=-1)[:, None]
    stored = draw(4, entries, _WIDTH, dtype=torch.bfloat16)
    order = draw(4, entries).argsort(dim=-1)[:, :chosen].sort(dim=-1).values
    counts = torch.tensor([chosen, (_WINDOW - 90) // 4 if chosen <= _CHOSEN[-1] else 0, chosen // 2, 0])
    index = order.where(torch.arange(chosen) < counts[:, None], -1)[:, None]
    # So large that few keys have most of the weight: one key too many or too few shows.
    q = draw(4, 1, _HEADS[0], _WIDTH, dtype=torch.bfloat16) * 8
    window = draw(4, _WINDOW, _WIDTH, dtype=torch.bfloat16)
    return q, window, window_range, stored, None, index, draw(_HEADS[0]), _WIDTH**-0.5, Rounding.BF16


FORMS = tuple(
    Form(
        operation="sparse_attention",
        tier="T2",
        operators=(f"{space}::npu_sparse_attn_sharedkv", f"{space}::npu_sparse_attn_sharedkv_metadata"),
        generations=A2_A3,
        run=_attention(space),
        note="captured steps in bf16",
        covers=_is_decode,
        limit=_limit,
        trial=trial,
        options={},
        bound=BOUND,
    )
    for space in ("_C_ascend", "custom")
)
