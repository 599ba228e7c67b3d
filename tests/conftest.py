"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

# Before anything imports torch: its OpenMP threads otherwise spin at every barrier, and where the processor
# is shared with other work the tests then take six times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--chip",
        default="cpu",
        metavar="DEVICE",
        help="where tests/kernels/test_contract.py runs the kernels",
    )


SPECIAL = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
    "｜DSML｜",
)


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json of 400 ids with V4's special tokens, all 256 bytes and a few merges."""
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text = Path(__file__).parent / "vectors" / "README.md"
    engine.train_from_iterator(
        [text.read_text(encoding="utf-8"), "once upon a time there was a cat"] * 4, trainer
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    engine.save(str(path))
    return path


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Path:
    """A random checkpoint of 2 MB with its tokenizer: every kind of layer and routing, and MTP."""
    from fourfold.weights.synth import synthesise

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    small = {
        "vocab_size": 400,
        "num_attention_heads": 4,
        "head_dim": 64,
        "qk_rope_head_dim": 32,
        "q_lora_rank": 64,
        "o_groups": 2,
        "o_lora_rank": 64,
        "sliding_window": 16,
        "moe_intermediate_size": 64,
        "num_experts_per_tok": 2,
        "index_n_heads": 4,
        "index_head_dim": 32,
        "index_topk": 8,
        "max_position_embeddings": 512,
    }
    synthesise(folder, like="flash", layers=4, experts=8, hidden=128, overrides=small, progress=False)
    shutil.copy(tokenizer_file, folder)
    return folder
