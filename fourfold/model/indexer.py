"""The lightning indexer: which compressed entries a CSA query attends to."""

from __future__ import annotations

from torch import Tensor, nn

from fourfold import kernels
from fourfold.config import ModelConfig
from fourfold.model.batch import ForwardBatch
from fourfold.model.compressor import Compressor
from fourfold.model.linear import Linear
from fourfold.model.memory import LayerMemory
from fourfold.model.numerics import Numerics


class Indexer(nn.Module):
    """Scores every visible entry by Σ_h w[h]·relu(q[h]·k) and keeps the best index_topk.

    Queries and keys pass a Hadamard transform (and FP4 in deployed numerics).  V4 report 2.3.1, eq. 13-17.
    """

    def __init__(self, config: ModelConfig, ratio: int, numerics: Numerics) -> None:
        super().__init__()
        self.heads, self.width, self.topk = config.index_n_heads, config.index_head_dim, config.index_topk
        self.ratio = ratio
        self.numerics = numerics
        self.wq_b = Linear(config.q_lora_rank, self.heads * self.width, numerics)
        self.weights_proj = Linear(config.hidden_size, self.heads, numerics)
        self.compressor = Compressor(config, ratio, self.width, overlapping=True)
        # What forward needs, past nn.Module's lookup, which costs half a microsecond a module and token.
        self._projections = self.wq_b, self.weights_proj

    def forward(
        self, x: Tensor, qr: Tensor, rows: Tensor, batch: ForwardBatch, memory: LayerMemory
    ) -> Tensor | None:
        """x [B, T, D], qr [B, T, q_lora_rank], rows: the compressor's of x -> entries [B, T, K] int64, -1
        padded; None when all are kept."""
        keys = self._keys(memory.index_tail.extend(rows), batch, memory)
        layout = batch.layout
        if keys is None or layout.most_visible(self.ratio) <= self.topk:
            if batch.choices is not None:
                batch.choices.entries.append(None)
            return None
        q, weights = self.queries(x, qr, batch)
        keys = memory.index_entries.in_order(keys)
        visible = layout.visible(self.ratio)
        chosen = kernels.index_topk(q, weights, keys, visible, self.topk)
        if (choices := batch.choices) is not None:
            own = chosen[0, choices.rows]
            choices.entries.append((own - visible[0, choices.rows, :1]).where(own >= 0, -1))
        return layout.places(chosen, self.ratio)

    def _keys(self, pending: Tensor, batch: ForwardBatch, memory: LayerMemory) -> Tensor | None:
        """All index keys so far; None if there is none."""
        if not batch.layout.completed(self.ratio):
            return memory.index_entries.unchanged()
        new = kernels.hadamard(self.compressor(pending, batch))
        return memory.index_entries.extend(self.numerics.index_key(new))

    def queries(self, x: Tensor, qr: Tensor, batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        """q [B, T, heads, width] and the heads' weights [B, T, heads] f32."""
        wq_b, weights_proj = self._projections
        q, weights = kernels.index_queries(
            x,
            qr,
            wq_b.stored,
            weights_proj.stored,
            self.heads,
            *batch.token_angles(True),
            self.width**-0.5 * self.heads**-0.5,
            (wq_b.rounding, weights_proj.rounding),
        )
        return self.numerics.index_query(q), weights
