"""A base and its adapter as one checkpoint: bytes, errors, and logits by our engine and by transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fourfold
from fourfold import CheckpointError, Engine, EngineConfig, Request
from fourfold.bench.peers_transformers import build, checkpoint_tensors
from fourfold.config import ModelConfig
from fourfold.train.masters import read_masters
from fourfold.weights.export import official_tensors
from fourfold.weights.layout import check_layout
from fourfold.weights.merge import merge
from fourfold.weights.shards import Reader
from fourfold.weights.writer import write_checkpoint
from tests.adapters import random_adapter

TARGETS = ("*.attn.wq_b", "*.wo_a", "layers.1.ffn.*", "layers.3.ffn.*w2")
IDS = [0, *range(20, 48)]


def contents(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Format, weight and scale by name."""
    found: dict[str, tuple[str, bytes]] = {}
    with Reader() as reader:
        for name, entry in check_layout(folder, ModelConfig.from_file(folder)).items():
            parts = [part for part in (entry.weight, entry.scale) if part is not None]
            raw = [reader.copy(p, torch.empty(p.nbytes, dtype=torch.uint8)).numpy().tobytes() for p in parts]
            found[name] = (entry.format, b"".join(raw))
    return found


@pytest.mark.parametrize("changed", ["keep", "bf16"])
def test_only_what_the_adapter_touches_changes(tiny_folder: Path, tmp_path: Path, changed: str) -> None:
    adapter = random_adapter(tiny_folder, tmp_path / "adapter", TARGETS)
    told = merge(tiny_folder, adapter, tmp_path / "merged", changed=changed, progress=False)
    before, after = contents(tiny_folder), contents(tmp_path / "merged")
    names = {tensor.name for tensor in told}
    assert names == {name for name in before if before[name] != after[name]}
    assert len(names) == 2 * 4 + 3 + 3 * 8 + 1 + 8
    for tensor in told:
        assert (
            tensor.format
            == after[tensor.name][0]
            == ("bf16" if changed == "bf16" else before[tensor.name][0])
        )
        # Half a step of the format: 2^-9 of a value in bf16, 2^-4 in FP8, up to a quarter in FP4.
        assert 0 < tensor.error < {"bf16": 2**-9, "fp8": 2**-4, "fp4": 0.25}[tensor.format]
        assert tensor.lost == pytest.approx(tensor.error / tensor.change, rel=0.5)
    fourfold.load(tmp_path / "merged")


def in_float32(folder: Path, target: Path) -> Path:
    """The same values, unquantised: what a merge changes is then stored as it is."""
    config = ModelConfig.from_file(folder)
    tensors = official_tensors(config, read_masters(folder), experts="f32", linears="f32")
    return write_checkpoint(target, config, tensors, side_files_from=folder)


def logits_with(folder: Path, adapter: Path | None) -> torch.Tensor:
    """Log probabilities of the first tokens after each of IDS, by the engine."""
    adapters = {} if adapter is None else {"own": adapter}
    with Engine(fourfold.load(folder), EngineConfig(memory="64MiB"), adapters=adapters) as engine:
        answer = engine.submit(
            Request(prompt=IDS, max_tokens=0, prompt_logprobs=0, adapter=next(iter(adapters), ""))
        )
        list(engine.chunks(answer))
        assert answer.prompt_logprobs is not None
        return torch.tensor([one.logprob for one in answer.prompt_logprobs if one is not None])


def test_adapter_and_merged_model_and_transformers_agree(tiny_folder: Path, tmp_path: Path) -> None:
    base = in_float32(tiny_folder, tmp_path / "base")
    adapter = random_adapter(base, tmp_path / "adapter", TARGETS)
    merge(base, adapter, tmp_path / "merged", progress=False)
    apart, merged, alone = (
        logits_with(base, adapter),
        logits_with(tmp_path / "merged", None),
        logits_with(base, None),
    )
    # Float32 both, the sums in another order; the bound is that of the golden vectors.
    assert (apart - merged).abs().max() < 1e-4 * apart.std() < (apart - alone).abs().max()
    config = ModelConfig.from_file(tmp_path / "merged")
    with Reader() as reader:
        other = build(config, checkpoint_tensors(tmp_path / "merged", config, reader), torch.float32)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        expected = other(ids, use_cache=False).logits
    got = fourfold.load(tmp_path / "merged")(ids).logits
    assert (got - expected).abs().max() / expected.std() < 1e-4


def test_another_bases_adapter_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    base = in_float32(tiny_folder, tmp_path / "base")
    adapter = random_adapter(base, tmp_path / "adapter", ("*.wq_a",))
    with pytest.raises(CheckpointError, match="was made for another base"):
        merge(tiny_folder, adapter, tmp_path / "merged", progress=False)
    assert not (tmp_path / "merged").exists()
    with pytest.raises(CheckpointError, match="changed is 'fp4'"):
        merge(base, adapter, tmp_path / "merged", changed="fp4")
