"""One token of each of several sequences in a paged cache, in tensors of fixed shapes and addresses.

A chip may record a pass through the model and repeat it without the host.  So nothing of the layout may come
from the host in between: before each pass `FixedStep.fill` writes where the tokens lie, all at once, and what
follows from that is computed by the device.  A pass always has as many rows as the step has places; those
that no sequence takes repeat the last one, and compute and write the same as it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fourfold.model.layout import Blocks
from fourfold.model.paged_layout import Integers, PagedLayout, Span

CallOf = Callable[[Sequence[Span]], PagedLayout]


class FixedStep:
    """Places for `batch` tokens of sequences of up to `context` tokens, their own included.

    held: rows of a slot's window; ratios: of compression; sizes: rows a slot of every stream in slots;
    call_of: the layout of some spans in the cache.  context is rounded up to whole blocks.
    """

    def __init__(
        self,
        batch: int,
        context: int,
        *,
        window: int,
        held: int,
        block_tokens: int,
        ratios: Sequence[int],
        sizes: Sequence[int],
        call_of: CallOf,
        device: torch.device,
    ) -> None:
        self.batch = batch
        self.window, self.block_tokens = window, block_tokens
        self._held = held
        self._call_of = call_of
        self._ratios, self._sizes = sorted(set(ratios)), sorted(set(sizes))
        self._blocks = -(-context // block_tokens)
        self.context = self._blocks * block_tokens
        widths = self._widths()
        self._flat = torch.zeros(batch * sum(widths.values()), dtype=torch.int64, device=device)
        parts = self._flat.split([batch * width for width in widths.values()])
        self._parts = {
            name: part.view(batch, width) for (name, width), part in zip(widths.items(), parts, strict=True)
        }
        self.call: PagedLayout | None = None

    def fill(self, spans: Sequence[Span], ids: Sequence[int]) -> None:
        """The next pass is that of these tokens, one of each span."""
        missing = self.batch - len(spans)
        assert missing >= 0 and all(s.new == 1 and s.end <= self.context for s in spans)
        self.call = self._call_of(spans)
        places = self._call_of([*spans, *[spans[-1]] * missing])
        values = self._values(places) | {"ids": np.array([*ids, *[ids[-1]] * missing], dtype=np.int64)}
        flat = np.concatenate([values[name].ravel() for name in self._parts])
        self._flat.copy_(torch.from_numpy(flat))

    def part(self, name: str) -> Tensor:
        """[batch, n] int64 of the numbers that `fill` writes; always the same memory."""
        return self._parts[name]

    def _widths(self) -> dict[str, int]:
        """The numbers of one token."""
        widths = {"ids": 1, "position": 1, "window": self.window, "seen from": 1, "table": self._blocks}
        for ratio in self._ratios:
            widths |= {f"seen {ratio}": 2, f"first {ratio}": 1, f"written {ratio}": 1}
            widths |= {f"tokens {reach} {ratio}": reach for reach in (ratio, 2 * ratio)}
        return widths | {f"own {size}": 1 for size in self._sizes}

    def _values(self, call: PagedLayout) -> dict[str, Integers]:
        span, position = np.arange(self.batch), call.position
        before = self.window - 1
        at = position[:, None] + np.arange(-before, 1)
        values = {
            "position": position,
            # Rows before the first token are the slot's, too: something finite, and out of the range.
            "window": call.rows(span[:, None], at, self._held),
            "seen from": np.maximum(before - position, 0),
            "table": call.table_rows(self._blocks),
        }
        for ratio in self._ratios:
            values |= self._of_ratio(call, ratio)
        return values | {f"own {size}": call.slot_rows(size) for size in self._sizes}

    def _of_ratio(self, call: PagedLayout, ratio: int) -> dict[str, Integers]:
        """What the block is made of that the token is part of: where it is not its last, the entry is not
        seen yet, and made again with the next token."""
        span, position = np.arange(self.batch), call.position
        number, seen = position // ratio, (position + 1) // ratio
        values = {
            f"seen {ratio}": np.stack([np.zeros_like(seen), seen], axis=-1),
            f"first {ratio}": number * ratio,
            f"written {ratio}": call.entry_rows(span, number, ratio),
        }
        for reach in (ratio, 2 * ratio):
            at = ((number + 1) * ratio - reach)[:, None] + np.arange(reach)
            known = (at >= 0) & (at <= position[:, None])
            values[f"tokens {reach} {ratio}"] = np.where(known, call.rows(span[:, None], at, reach), -1)
        return values


class FixedLayout:
    """The layout of one pass of a step: B rows of one token.

    As `PagedLayout`, except that entries are in order row by row, and that every block counts as completed.
    """

    def __init__(self, step: FixedStep) -> None:
        self.step = step
        self.spans = range(step.batch)
        self._rows: dict[int, Tensor] = {}

    @property
    def positions(self) -> Tensor:
        """[B, 1] int64."""
        return self.step.part("position")

    @property
    def window_rows(self) -> Tensor:
        """Rows of every token's window, its own last.  [B · W] int64."""
        return self.step.part("window").flatten()

    @property
    def held_rows(self) -> Tensor:
        """Those of a single token without its own.  [W - 1] int64."""
        return self.window_rows[:-1]

    @property
    def window_range(self) -> Tensor:
        """[B, 1, 2] int64."""
        start = self.step.part("seen from")
        return torch.stack([start, torch.full_like(start, self.step.window)], dim=-1)

    def completed(self, ratio: int) -> int:
        """One in every row."""
        return 1

    def most_visible(self, ratio: int) -> int:
        """Compressed entries that there is room for."""
        return self.step.context // ratio

    def visible(self, ratio: int) -> Tensor:
        """[B, 1, 2] int64."""
        return self.step.part(f"seen {ratio}")[:, None]

    def listed(self, ratio: int) -> Tensor:
        """Rows of the entries that each token sees, -1 padded.  [B, 1, K] int64."""
        if ratio not in self._rows:
            size = self.step.block_tokens // ratio
            device = self.positions.device
            rows = self.step.part("table")[..., None] * size + torch.arange(size, device=device)
            number = torch.arange(self.most_visible(ratio), device=device)
            seen = number < self.step.part(f"seen {ratio}")[:, 1:]
            self._rows[ratio] = rows.flatten(1).where(seen, -1)[:, None]
        return self._rows[ratio]

    def stored(self, ratio: int) -> Tensor:
        """Rows of every token's entries, of any where there is none yet.  [B, S] int64."""
        return self.listed(ratio)[:, 0].clamp_min(0)

    def places(self, chosen: Tensor, ratio: int) -> Tensor:
        """Rows of entries that were chosen by that order, -1 padded."""
        return self.listed(ratio).gather(-1, chosen.clamp_min(0)).where(chosen >= 0, -1)

    def blocks(self, ratio: int, overlapping: bool) -> Blocks:
        """The block that each token is part of."""
        tokens = self.step.part(f"tokens {2 * ratio if overlapping else ratio} {ratio}")
        return Blocks(tokens[:, None], self.step.part(f"first {ratio}"))

    def written(self, ratio: int) -> Tensor:
        """[B] int64."""
        return self.step.part(f"written {ratio}")[:, 0]

    @property
    def tokens(self) -> int:
        """Those that count when the call is done: without repetitions."""
        return self._call.tokens

    def own_rows(self, size: int, counted: Sequence[int] | None = None) -> tuple[Tensor, None]:
        """As in `PagedLayout`; the one token of a span always counts."""
        return self.step.part(f"own {size}")[: self.tokens, 0], None

    def copies(self, size: int, kept: Sequence[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
        """As in `PagedLayout`."""
        return self._call.copies(size, kept)

    @property
    def _call(self) -> PagedLayout:
        assert self.step.call is not None
        return self.step.call
