"""Adapters in the engine: the same bits alone and among others, and nothing of one found by another."""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file

import fourfold
from fourfold import CheckpointError, Engine, EngineConfig, Request, RequestError, Sampling
from fourfold.engine import work as module
from fourfold.engine.sampler import sample
from fourfold.kernels import cpu
from fourfold.model.transformer import Transformer
from tests.adapters import random_adapter

needs_native = pytest.mark.skipif(not cpu.available(), reason="only native kernels keep bits in any company")
PROMPTS = [[0, *range(20 + 3 * i, 20 + 3 * i + 25 + i)] for i in range(3)]


@pytest.fixture(scope="module")
def adapters(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of everything, of some attention, of experts."""
    folder = tmp_path_factory.mktemp("adapters")
    kinds = {"all": ("layers.*",), "attention": ("*.wq_b", "*.wo_a"), "experts": ("*.ffn.*",)}
    return {
        name: random_adapter(tiny_folder, folder / name, patterns, seed=i)
        for i, (name, patterns) in enumerate(kinds.items())
    }


def answers(
    model: Transformer, adapters: dict[str, Path], wanted: list[tuple[list[int], str]], **values: Any
) -> list[tuple[list[int], str]]:
    """Ids and a hash of all logits of each answer; all requests at once.  The seed is the prompt's number."""
    seen: defaultdict[Any, Any] = defaultdict(hashlib.sha256)

    def watched(logits: Any, sampling: Sampling, position: int) -> int:
        seen[sampling.seed].update(logits.numpy().tobytes())
        return sample(logits, sampling, position)

    config = EngineConfig(**{"max_running": 4, "step_tokens": 40, **values})
    with patch.object(module, "sample", watched), Engine(model, config, adapters=adapters) as engine:
        running = [
            engine.submit(Request(prompt=prompt, max_tokens=6, adapter=name, sampling=Sampling(seed=number)))
            for number, (prompt, name) in enumerate(wanted)
        ]
        for answer in running:
            list(engine.chunks(answer))
    return [(answer.ids, seen[number].hexdigest()) for number, answer in enumerate(running)]


@needs_native
@pytest.mark.parametrize("numerics", ["fast", "deployed"])
def test_the_same_bits_alone_and_among_others(
    tiny_folder: Path, adapters: dict[str, Path], numerics: str
) -> None:
    model = fourfold.load(tiny_folder, numerics=numerics)
    wanted = [(PROMPTS[i % 3], name) for i, name in enumerate(["", "all", "attention", "experts"])]
    together = answers(model, adapters, wanted)
    for number, one in enumerate(wanted):
        padded = [(PROMPTS[0][:1], "")] * number + [one]  # so that its seed is the same
        assert answers(model, adapters, padded)[-1] == together[number]
    without = answers(model, {}, [(prompt, "") for prompt, _ in wanted])
    assert [one == other for one, other in zip(together, without, strict=True)] == [
        not name for _, name in wanted
    ]


@needs_native
def test_experts_that_are_streamed_have_the_same_bits(tiny_folder: Path, adapters: dict[str, Path]) -> None:
    wanted = [(PROMPTS[0], "all"), (PROMPTS[1], ""), (PROMPTS[2], "experts")]
    whole = fourfold.load(tiny_folder, numerics="fast")
    stored = sum(p.nbytes for p in whole.parameters())
    streamed = fourfold.load(tiny_folder, numerics="fast", ram=int(stored * 0.86))
    assert streamed.tiers is not None
    try:
        assert answers(streamed, adapters, wanted) == answers(whole, adapters, wanted)
    finally:
        streamed.tiers.close()


def test_prefixes_are_not_found_across_adapters(
    tiny_folder: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    model = fourfold.load(tiny_folder)
    prompt = [0, *range(10, 210)]
    for cache_dir in (None, str(tmp_path / "cache"), str(tmp_path / "cache")):
        with Engine(model, EngineConfig(cache_dir=cache_dir), adapters=adapters) as engine:
            for name in ("", "all", "attention"):
                for again in (False, True):
                    answer = engine.submit(Request(prompt=prompt, max_tokens=2, adapter=name))
                    list(engine.chunks(answer))
                    kept = cache_dir is not None and (tmp_path / "told").exists()
                    assert (answer.cached_tokens > 0) == (again or kept), (cache_dir, name)
        if cache_dir is not None:
            (tmp_path / "told").touch()


def test_an_adapter_that_is_not_there_is_refused(tiny_folder: Path, adapters: dict[str, Path]) -> None:
    model = fourfold.load(tiny_folder)
    with Engine(model, adapters=adapters) as engine:
        with pytest.raises(RequestError, match="adapter is 'other'; allowed: 'all', 'attention'"):
            engine.submit(Request(prompt=[0], adapter="other"))
        answer = engine.submit(Request(prompt=[0], max_tokens=1, adapter="all"))
        pinned = answer.request.adapter
        list(engine.chunks(answer))
    # A log that names another adapter of this name does not go on with it.
    changed = {"all": adapters["attention"]}
    with Engine(model, adapters=changed) as engine, pytest.raises(RequestError, match="adapter is 'all@"):
        engine.submit(Request(prompt=[0], adapter=pinned))


def test_an_adapter_of_another_base_is_refused(other_base: Path, adapters: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="was made for another base"):
        Engine(fourfold.load(other_base), adapters=adapters)


@pytest.fixture
def other_base(tiny_folder: Path, tmp_path: Path) -> Path:
    """The same shapes with one other weight."""
    folder = tmp_path / "other"
    shutil.copytree(tiny_folder, folder)
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    tensors["layers.1.attn.wq_a.weight"] = torch.zeros_like(tensors["layers.1.attn.wq_a.weight"])
    save_file(tensors, file)
    return folder
