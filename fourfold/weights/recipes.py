"""What the Ascend recipes convert: which matrices become int8 or int4, and what stays.

w8a8: int8 for the routed and shared experts, wq_b, wo_b, the indexer's wq_b and the MTP block's e_proj and
h_proj.  w4a8: the same with int4 for the routed experts.  bf16: none.  Every other matrix becomes bf16; what
is never quantised stays as it is.  From the conversion guides of cann-recipes-infer and vllm-ascend, whose
lists agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fourfold.weights.formats import Format
from fourfold.weights.names import TensorSpec

RECIPES = ("w8a8", "w4a8", "bf16")

_INT8_LINEARS = ("wq_b", "wo_b", "e_proj", "h_proj")
_EXPERTS: dict[str, Format] = {"w8a8": "int8", "w4a8": "int4", "bf16": "bf16"}


def recipe_format(recipe: str, name: str, spec: TensorSpec) -> Format | None:
    """The format of the weight `name` in a recipe; None for what no recipe touches."""
    if spec.kind == "expert":
        return _EXPERTS[recipe]
    if spec.kind != "linear":
        return None
    module = name.removesuffix(".weight")
    chosen = ".shared_experts." in module or module.rpartition(".")[2] in _INT8_LINEARS
    return "int8" if chosen and recipe != "bf16" else "bf16"


def left_out(spec: Mapping[str, TensorSpec], integers: set[str]) -> Iterator[str]:
    """The linear modules that are not stored as integers, as the recipes' config.json lists them.

    integers: weights that are.  The embedding and the routers are no linears there.
    """
    for name, tensor in spec.items():
        module, _, leaf = name.rpartition(".")
        projection = tensor.kind == "bf16" and len(tensor.shape) == 2 and ".attn." in name
        if leaf == "weight" and name not in integers and (tensor.kind == "linear" or projection):
            yield module
    yield "head"
    yield from (name.replace("e_proj.weight", "head") for name in spec if name.endswith("e_proj.weight"))
