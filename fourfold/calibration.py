"""What the inputs of a model's matrices are like over a text: how much each column matters to a conversion.

An error in column i of a matrix moves its output by the error times x_i.  The mean of x_i² over a text's
tokens therefore weighs the columns when scales are searched (weights/quantise.py).  Routed experts count
their own tokens only, and their second matrix sees its input as it is weighed by the router.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourfold import kernels
from fourfold.errors import RequestError
from fourfold.kernels import reference
from fourfold.kernels.formats import Rounding
from fourfold.loading import load
from fourfold.model.block import Block
from fourfold.model.linear import Linear
from fourfold.model.transformer import Transformer
from fourfold.weights.progress import byte_progress

_SEQUENCE = 2048  # tokens that see each other; the text is cut into such parts
_PIECE = 256  # tokens of a call: bounds the memory


@dataclass(frozen=True)
class Calibration:
    """importance: weight by official name -> mean square of each of its inputs, [I] f32.

    tokens: of the text.  unmet: routed experts that it did not reach, which have no importance.
    """

    importance: dict[str, Tensor]
    tokens: int
    unmet: int


def calibrate(folder: Path, text: str, progress: bool = True) -> Calibration:
    """Run `text` through the checkpoint `folder` in exact numerics, on the CPU.

    RequestError: the checkpoint has no tokenizer, or the text is empty.  CheckpointError, as `fourfold.load`.
    """
    model = load(folder)
    if model.tokenizer is None:
        raise RequestError(f"{folder} has no tokenizer.json, which calibration needs; export without a text")
    ids = model.tokenizer.encode(text)
    if not ids:
        raise RequestError("the text to calibrate with is empty; give one of a few thousand words")
    record = _Record(model)
    size = len(text.encode())
    with byte_progress("calibrating", size, show=progress) as advance:
        done = 0
        for piece, cache in _pieces(model, ids):
            with kernels.observed("cpu", record.watch):
                model(piece, cache=cache, mtp=bool(model.mtp), logits="last")
            done += piece.shape[1]
            advance(size * done // len(ids) - size * (done - piece.shape[1]) // len(ids))
    met = sum(".ffn.experts." in name and name.endswith(".w1.weight") for name in record.sums)
    return Calibration(record.means(), len(ids), record.experts - met)


def _pieces(model: Transformer, ids: list[int]) -> Iterator[tuple[Tensor, Any]]:
    """Tokens [1, t] and the cache that holds what comes before them, sequence by sequence."""
    length = min(_SEQUENCE, model.config.max_position_embeddings) - 1
    for begin in range(0, len(ids), length):
        cache = model.new_cache()
        sequence = torch.tensor([[model.config.bos_token_id, *ids[begin : begin + length]]])
        for piece in sequence.split(_PIECE, dim=1):
            yield piece, cache


class _Record:
    """Sums of squared inputs, by weight."""

    def __init__(self, model: Transformer) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = defaultdict(int)
        self.experts = 0
        self.watch = {
            "linear": self._linear,
            "experts": self._experts,
            "shared_expert": self._shared_expert,
        }
        self._names: dict[int, str] = {}
        self._layer, self._shared = "", False
        for name, module in model.named_modules():
            if isinstance(module, Linear) and ".shared_experts." not in name:
                self._names[module.weight.data_ptr()] = f"{name}.weight"
            elif isinstance(module, Block):
                # The slots that experts are read into serve all layers: the module says whose they are.
                module.register_forward_pre_hook(functools.partial(self._enter, name))
                self.experts += model.config.n_routed_experts

    def means(self) -> dict[str, Tensor]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    def _enter(self, name: str, *_: object) -> None:
        self._layer = name

    def _add(self, name: str, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        total = rows.square().sum(0)
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] += len(rows)

    def _linear(self, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def linear(x: Tensor, weight: Tensor, scale: Tensor | None, rounding: Rounding) -> Tensor:
            if (name := self._names.get(weight.data_ptr())) is not None:
                self._add(name, x)
            return run(x, weight, scale, rounding)

        return linear

    def _shared_expert(self, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def shared_expert(*arguments: Any) -> Tensor:
            self._shared = True
            try:
                return run(*arguments)
            finally:
                self._shared = False

        return shared_expert

    def _experts(self, _: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def experts(
            x: Tensor,
            indices: Tensor,
            weights: Tensor,
            w1: Tensor,
            s1: Tensor | None,
            w3: Tensor,
            s3: Tensor | None,
            w2: Tensor,
            s2: Tensor | None,
            limit: float,
            rounding: Rounding,
            places: Tensor | None,
            out: Tensor | None,
        ) -> Tensor:
            for expert in indices.unique().tolist():
                place = expert if places is None else int(places[expert])
                if place >= 0:
                    owner = "shared_experts" if self._shared else f"experts.{expert}"
                    for matrix, stack in (("w1", w1), ("w2", w2), ("w3", w3)):
                        self._names[stack[place].data_ptr()] = f"{self._layer}.ffn.{owner}.{matrix}.weight"
            # The contract's own products, which are observed one by one.
            return reference.experts_by(
                kernels.linear, x, indices, weights, w1, s1, w3, s3, w2, s2, limit, rounding, places, out
            )

        return experts
