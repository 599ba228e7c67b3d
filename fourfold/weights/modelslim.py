"""Checkpoints that ModelSlim and vllm-ascend converted: int8 and int4 by `quant_model_description.json`.

The description maps every tensor to FLOAT, W8A8_DYNAMIC or W4A8_DYNAMIC, beside a version and group_size 0
(one scale per channel).  A converted matrix has `.weight` (int8 [O, I], int4 [O/2, I] in pairs of channels),
`.weight_scale` and `.weight_offset` [O, 1] float32, the offset 0 as the conversion is symmetric; int4 also
`.scale_bias`, 8 · scale · Σ codes, which follows from the others.  The MTP block has copies of the embedding
and the head.  config.json is the original one without its quantization_config.

Read from examples/quantization/deepseek_v4/README.md of vllm-ascend (2026-09) and msmodelslim's DeepSeek-V4
adapter: rotated or smoothed online (`optional`), per-group and other types are refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fourfold.config_values import parse_json
from fourfold.errors import CheckpointError
from fourfold.weights.formats import Format
from fourfold.weights.names import canonical
from fourfold.weights.shards import Stored

DESCRIPTION = "quant_model_description.json"
INDEX_PATTERN = "quant_model_weight*.safetensors.index.json"

_FORMATS: dict[str, tuple[Format, ...]] = {
    "FLOAT": ("bf16", "f32", "int"),
    "W8A8_DYNAMIC": ("int8",),
    "W4A8_DYNAMIC": ("int4",),
}
# About the whole checkpoint; group_size 0 and empty metadata ask for nothing.
_ABOUT: dict[str, tuple[Any, ...]] = {
    "version": ("1.0.0",),
    "model_quant_type": ("W8A8_DYNAMIC", "W4A8_DYNAMIC"),
    "group_size": (0,),
    "metadata": ({},),
    "optional": ({},),
}


def read_description(folder: Path) -> dict[str, tuple[Format, ...]] | None:
    """Tensor by canonical name -> the formats that it may have; None where there is no description.

    Raises CheckpointError: a broken description, or one that asks for what we do not compute.
    """
    file = folder / DESCRIPTION
    if not file.exists():
        return None
    try:
        data = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file}: must hold an object, found {type(data).__name__}")
    for key, allowed in _ABOUT.items():
        if key in data and (value := data.pop(key)) not in allowed:
            wanted = " or ".join(map(repr, allowed))
            raise CheckpointError(f"{file}: {key} is {value!r}; allowed: {wanted}")
    for name, kind in data.items():
        if not isinstance(kind, str) or kind not in _FORMATS:
            raise CheckpointError(f"{file}: {name} is {kind!r}; allowed: {', '.join(_FORMATS)}")
    return {canonical(name): _FORMATS[kind] for name, kind in data.items()}


def check_described(
    folder: Path, formats: dict[str, tuple[Format, ...]], weights: Iterable[tuple[str, Format, Stored]]
) -> None:
    """Each weight, (canonical name, format, tensor), is what the description says.  CheckpointError."""
    for name, fmt, stored in weights:
        said = formats.get(name)
        if said is None:
            raise CheckpointError(f"{folder / DESCRIPTION}: does not say how {stored} is stored")
        if fmt not in said:
            raise CheckpointError(f"{stored}: stored as {fmt}; {DESCRIPTION} says {' or '.join(said)}")
