"""Random starting weights."""

from __future__ import annotations

import torch
from torch import nn

RESIDUAL_OUTPUTS = ("wo_b.weight", "w2.weight", "out.weight", "down.weight")
EMBEDDING_STD = 0.3


@torch.no_grad()
def initialise(module: nn.Module, std: float) -> None:
    """Normal matrices of deviation `std`, in place; vectors and mHC's parameters keep what they have.

    What is added to the residual streams is scaled down by sqrt(2 * layers), so that their size does not
    depend on the depth. The embedding is large against one addition: every sublayer reads a normed stream,
    and a token must still be recognisable in it after the first few.
    """
    names = dict(module.named_parameters())
    depth = len({name.split(".")[1] for name in names if name.startswith("layers.")})
    for name, parameter in names.items():
        if parameter.ndim < 2 or not parameter.is_floating_point() or ".hc_" in f".{name}":
            continue
        if name == "embed.weight":
            nn.init.normal_(parameter, std=EMBEDDING_STD)
        elif not name.endswith("ape"):
            residual = name.endswith(RESIDUAL_OUTPUTS)
            nn.init.normal_(parameter, std=std / (2 * depth) ** 0.5 if residual else std)
