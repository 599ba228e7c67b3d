"""Memory: where large tensors begin; loading holds the weights and little else, writing one tensor, in a process
of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from fourfold.weights.memory import HUGE_PAGE, empty

# Small steps of reading, so that a checkpoint of 200 MB shows whether mapped pages pile up.
SCRIPT = """
import sys
from pathlib import Path
import torch
from fourfold.config import ModelConfig
from fourfold.weights import load, shards, synth

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
"""


def test_large_tensors_begin_at_a_huge_page():
    for shape, dtype in (
        ((5, 1 << 20), torch.int8),
        ((3, 1 << 20), torch.float8_e8m0fnu),
        ((1 << 20,), torch.bfloat16),
    ):
        tensor = empty(shape, dtype)
        assert tensor.shape == shape and tensor.dtype == dtype and tensor.is_contiguous()
        assert tensor.data_ptr() % HUGE_PAGE == 0
        tensor.view(torch.uint8).fill_(7)
        assert int(tensor.view(torch.uint8).to(torch.int64).sum()) == 7 * tensor.nbytes
    assert empty((3,), torch.float32).shape == (3,)


def test_peaks(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    writing, loading, weights = map(float, done.stdout.split())
    assert weights > 150
    assert writing < 100
    assert loading < weights + 40
