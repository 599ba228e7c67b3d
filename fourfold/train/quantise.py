"""Quantisation-aware training by exchanging the weights for the duration of a forward and backward pass.

Inside `rounded_weights` every parameter holds the value that its exported format will hold, so the loss and
the gradients are those of the exported model; outside it holds the float32 master, which takes the update.
That is the straight-through estimator, without a hook anywhere in the model (V4 report 3.4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fourfold.kernels.formats import decode_fp8, round_fp4
from fourfold.weights.formats import encode_fp8

Rounding = Callable[[Tensor], Tensor]


def round_fp8_blocks(weight: Tensor) -> Tensor:
    """weight [..., O, I] as the export stores it in FP8, one scale per 128x128 block; float32."""
    return decode_fp8(*encode_fp8(weight))


def round_bf16(weight: Tensor) -> Tensor:
    """weight on the bfloat16 grid, float32."""
    return weight.to(torch.bfloat16).float()


ROUNDINGS: dict[str, Rounding] = {"fp4": round_fp4, "fp8": round_fp8_blocks, "bf16": round_bf16}


@contextmanager
def rounded_weights(parameters: Mapping[str, nn.Parameter], formats: Mapping[str, str]) -> Iterator[None]:
    """Exchange each parameter named in `formats` ("fp4", "fp8", "bf16") for its rounded value until the end.

    Parameters that `formats` does not name (float32 in the checkpoint) stay as they are.
    """
    masters = {}
    try:
        with torch.no_grad():
            for name, form in formats.items():
                masters[name] = parameters[name].data
                parameters[name].data = ROUNDINGS[form](masters[name])
        yield
    finally:
        for name, master in masters.items():
            parameters[name].data = master
