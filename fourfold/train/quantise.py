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

from fourfold.kernels.formats import FP8_BLOCK, FP8_MAX, power_of_two_scale, round_fp4

Rounding = Callable[[Tensor], Tensor]


def round_fp8_blocks(weight: Tensor) -> Tensor:
    """weight [..., O, I] on the e4m3 grid, one scale 2^ceil(log2(amax/448)) per 128x128 block; float32."""
    rows, columns = weight.shape[-2:]
    padded = nn.functional.pad(weight.float(), (0, -columns % FP8_BLOCK, 0, -rows % FP8_BLOCK))
    blocks = padded.unflatten(-2, (-1, FP8_BLOCK)).unflatten(-1, (-1, FP8_BLOCK))
    amax = blocks.abs().amax(dim=(-3, -1), keepdim=True)
    scale = power_of_two_scale(amax.clamp_min(torch.finfo(torch.float32).tiny), FP8_MAX)
    rounded = (blocks / scale).to(torch.float8_e4m3fn).float() * scale
    return rounded.flatten(-2).flatten(-3, -2)[..., :rows, :columns]


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
