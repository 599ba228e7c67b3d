"""Memory: loading holds the weights and little else, writing one tensor; in a process of its own."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from fourfold.weights import memory

# Small steps of reading, so that a checkpoint of 200 MB shows whether mapped pages pile up.
SCRIPT = """
import sys
from pathlib import Path
import torch
from fourfold.config import ModelConfig
from fourfold.weights import export, load, shards, synth

torch.set_num_threads(1)  # this measures memory; leave the cores to the other tests
shards._REMAP_EVERY, shards._CHUNK = 16 << 20, 4 << 20

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))

def reset():
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from now

folder = Path(sys.argv[1])
small = {"vocab_size": 64, "num_attention_heads": 8}
synth.synthesise(folder / "warm", layers=1, experts=1, hidden=128, overrides=small, progress=False)
list(load.read_checkpoint(folder / "warm", ModelConfig.from_file(folder / "warm")))

reset()
before = memory("VmRSS")
synth.synthesise(
    folder / "model", layers=4, experts=16, hidden=512, shard_size=100_000_000, progress=False,
    overrides={"vocab_size": 8192, "moe_intermediate_size": 1024},
)
print(memory("VmHWM") - before)

reset()
before = memory("VmRSS")
tensors = dict(load.read_checkpoint(folder / "model", ModelConfig.from_file(folder / "model")))
print(memory("VmHWM") - before)
print(sum(tensor.nbytes for tensor in tensors.values()) / 2**20)

del tensors
export.export_recipe(folder / "warm", folder / "warm-w4a8", "w4a8", progress=False)
synth.synthesise(
    folder / "small", layers=2, experts=12, hidden=512, progress=False,
    overrides={
        "vocab_size": 64, "moe_intermediate_size": 1024, "num_attention_heads": 8, "head_dim": 64,
        "index_n_heads": 8,
    },
)
reset()
before = memory("VmRSS")
export.export_recipe(folder / "small", folder / "w4a8", "w4a8", progress=False, shard_size=20_000_000)
print(memory("VmHWM") - before)
print(sum(file.stat().st_size for file in (folder / "w4a8").iterdir()) / 2**20)
"""


def test_peaks(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    writing, loading, weights, converting, converted = map(float, done.stdout.split())
    assert weights > 150
    assert writing < 100
    assert loading < weights + 40
    assert converted > 50  # and five times as much in float32
    assert converting < 50


def test_tensors_share_blocks_but_nothing_else(monkeypatch):
    monkeypatch.setattr(memory, "_BLOCK", 1 << 16)
    kept = memory.WeightMemory()
    shapes = [
        ((), torch.float32),
        ((3, 5), torch.int8),
        ((100, 100), torch.bfloat16),
        ((300, 100), torch.uint8),
    ]
    tensors = [kept.empty(shape, dtype) for shape, dtype in [*shapes, ((1 << 15,), torch.float32), *shapes]]
    for number, tensor in enumerate(tensors):
        assert tensor.is_contiguous() and tensor.data_ptr() % 64 == 0
        tensor.fill_(number)
    for number, tensor in enumerate(tensors):
        assert (tensor == number).all()
        assert tensor._version == 1 and tensor.untyped_storage().nbytes() == tensor.nbytes
    assert [(tuple(tensor.shape), tensor.dtype) for tensor in tensors[:4]] == shapes


def test_a_block_goes_with_its_last_tensor(monkeypatch):
    monkeypatch.setattr(memory, "_BLOCK", 1 << 16)
    blocks = []

    def remember(size: int) -> Block:
        block = Block(-1, size)
        blocks.append(weakref.ref(block))
        return block

    monkeypatch.setattr(memory, "reserve", remember)
    kept = memory.WeightMemory()
    first, second, large = (kept.empty((size,), torch.uint8) for size in (1 << 15, 1 << 15, 1 << 17))
    assert len(blocks) == 2
    del kept, first, large
    gc.collect()
    assert [block() is None for block in blocks] == [False, True]
    del second
    gc.collect()
    assert blocks[0]() is None


class Block(mmap.mmap):
    """Memory that can be watched."""


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no huge pages to ask for")
def test_memory_asks_for_huge_pages():
    held = memory.reserve(8 << 20)
    assert len(held) == 8 << 20 and held[:4] == bytes(4)
    lines = Path("/proc/self/smaps").read_text(encoding="utf-8").split("VmFlags:")[1:]
    assert any(" hg" in line.splitlines()[0] for line in lines)
