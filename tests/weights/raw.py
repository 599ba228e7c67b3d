"""Safetensors files taken apart and put together again by hand, so that tests can break them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

Raw = dict[str, tuple[str, list[int], bytes]]  # name -> (dtype, shape, data)
GOLDEN = Path(__file__).parents[2] / "fourfold" / "conformance" / "golden"


def read_raw(file: Path) -> Raw:
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = data[8 + length :]
    return {
        name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def read_folder(folder: Path) -> Raw:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in read_raw(file).items()}


def write_raw(file: Path, tensors: Mapping[str, tuple[str, list[int], bytes]]) -> None:
    header, body = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def rewritten(src: Path, dst: Path, change: Callable[[Raw], object]) -> Path:
    """A copy of a single-file checkpoint whose tensors `change` has edited in place."""
    tensors = read_raw(src / "model.safetensors")
    change(tensors)
    dst.mkdir()
    write_raw(dst / "model.safetensors", tensors)
    (dst / "config.json").write_bytes((src / "config.json").read_bytes())
    return dst


def tensor_name(parameter: str, expert: int | None) -> str:
    """Official name of a parameter, or of row `expert` of one that stacks experts."""
    if expert is None:
        return parameter
    head, rest = parameter.split(".ffn.experts.", 1)
    return f"{head}.ffn.experts.{expert}.{rest}"


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    )
