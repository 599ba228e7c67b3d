"""transformers' own DeepSeek-V4, loaded from the same checkpoint in float32, computes the same logits.

It is an independent implementation.  The bound is the golden vectors' own: 1e-4 of the logits' standard
deviation.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from fourfold.config import ModelConfig
from fourfold.model.transformer import Transformer
from tests.model.conftest import TINY, build, tokens

BOUND = 1e-4

# Few index heads often score 0 for several entries (every relu closed). Such ties are arbitrary in
# transformers and in the published reference, and ours by rule; with many heads there are none, and the
# choice can be compared.
BASE = replace(TINY, index_n_heads=32)

CONFIGS = {
    "all kinds": BASE,
    "swa only": replace(BASE, layer_kinds=("swa",) * 5, layer_ratios=(0,) * 5, hash_layers=(False,) * 5),
    "hca first, as Pro": replace(
        BASE, layer_kinds=("hca", "hca", "csa", "hca", "csa"), layer_ratios=(16, 16, 4, 16, 4), index_topk=2
    ),
    "no yarn, other base": replace(BASE, yarn=None, rope_theta=500.0, compress_rope_theta=9000.0),
    "two streams, four groups, top-3": replace(
        BASE, hc_mult=2, o_groups=4, num_experts_per_tok=3, routed_scaling_factor=2.5, hc_sinkhorn_iters=5
    ),
    "tight clamp": replace(BASE, swiglu_limit=0.3),
    "window longer than the text": replace(BASE, sliding_window=128),
    "all hash": replace(BASE, hash_layers=(True,) * 5),
}


def write_official(model: Transformer, folder: Path) -> None:
    """The model in the official names, unquantised, by hand: nothing of our own writer is trusted here."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        head, found, tail = name.partition(".experts.")
        if found and "shared" not in head:
            for j, expert in enumerate(tensor):
                tensors[f"{head}.experts.{j}.{tail}"] = expert.clone()
        else:
            tensors[name] = tensor.clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_json()
    config.pop("quantization_config", None)
    config |= {"torch_dtype": "float32", "num_nextn_predict_layers": 0}
    if "compress_ratios" in config:
        config["compress_ratios"] = config["compress_ratios"][: model.config.num_hidden_layers]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_same_logits(name: str, tmp_path: Path) -> None:
    config: ModelConfig = CONFIGS[name]
    model = build(config)
    write_official(model, tmp_path)
    other = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = tokens(90, batch=2)
    with torch.no_grad():
        expected = other(ids, use_cache=False).logits
    got = model(ids).logits
    assert float((got - expected).abs().max() / expected.std()) < BOUND
