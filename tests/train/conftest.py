"""A small corpus, and a training config for a tiny model with every kind of layer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fourfold.train.config import TrainConfig
from fourfold.train.trainer import train

WORDS = ("cat", "dog", "sun", "tree", "boat")
MODEL = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "vocab_size": 512,
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_hash_layers": 1,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "qk_rope_head_dim": 16,
    "q_lora_rank": 32,
    "o_groups": 2,
    "o_lora_rank": 16,
    "sliding_window": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "swiglu_limit": 10.0,
    "index_n_heads": 2,
    "index_head_dim": 32,
    "index_topk": 64,
    "hc_mult": 2,
    "hc_sinkhorn_iters": 5,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "rope_scaling": None,
    "compress_ratios": [0, 4, 128, 4, 0],
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "torch_dtype": "bfloat16",
    "expert_dtype": "fp4",
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
}


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """corpus.jsonl: stories and questions of 10 to 60 bytes."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    pairs = [(a, b) for a in WORDS for b in WORDS]
    records: list[dict[str, str]] = [
        {"kind": "story", "text": f"The {a} saw the {b}. It was {i}."} for i, (a, b) in enumerate(pairs)
    ]
    records += [
        {"kind": "qa", "prompt": f"Where is the {w}?", "response": f"The {w} is here."} for w in WORDS
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def run_values(folder: Path, tokenizer_file: Path, corpus_file: Path) -> dict[str, dict[str, Any]]:
    """A float32 run of a few steps in folder/run, as TOML would have it."""
    model = folder / "config.json"
    model.write_text(json.dumps(MODEL), encoding="utf-8")
    return {
        "model": {"config": str(model), "init_std": 0.1},
        "data": {
            "tokenizer": str(tokenizer_file),
            "files": [{"path": str(corpus_file)}],
            "held_out_share": 0.1,
            "sequence_length": 64,
            "batch_size": 2,
        },
        "loss": {},
        "optimizer": {},
        "quantisation": {"start": 1.0},
        "run": {
            "dir": str(folder / "run"),
            "steps": 4,
            "dtype": "float32",
            "checkpoint_every": 2,
            "eval_every": 2,
            "export": False,
            "threads": 1,
        },
    }


@pytest.fixture
def make_config(tmp_path: Path, tokenizer_file: Path, corpus_file: Path) -> Callable[..., TrainConfig]:
    """make_config(section={key: value}): `run_values` in tmp_path, changed."""

    def make(**changes: dict[str, Any]) -> TrainConfig:
        values = run_values(tmp_path, tokenizer_file, corpus_file)
        for section, change in changes.items():
            values.setdefault(section, {}).update(change)
        return TrainConfig.from_dict(values)

    return make


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, corpus_file: Path) -> Path:
    """An exported model that ends its sentences."""
    values = run_values(tmp_path_factory.mktemp("taught"), tokenizer_file, corpus_file)
    values["data"] |= {"batch_size": 4}
    values["optimizer"] |= {"lr": 0.02, "adamw_lr": 0.02}
    values["quantisation"] = {"start": 0.0}
    values["run"] |= {"steps": 14, "eval_every": 0, "checkpoint_every": 0, "export": True}
    export = train(TrainConfig.from_dict(values)).export
    assert export is not None
    return export


@pytest.fixture
def teacher_folder(taught: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return shutil.copytree(taught, tmp_path / "teacher")
