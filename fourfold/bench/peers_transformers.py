"""transformers' DeepSeek-V4 on the weights of a checkpoint, decoded in memory.

The one place that knows how our tensors become transformers' model; the tests compare logits through it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.errors import RequestError
from fourfold.kernels.formats import decode
from fourfold.weights.layout import Entry, check_layout
from fourfold.weights.load import read_tensor
from fourfold.weights.shards import Reader


class _Later:
    """A tensor that is made when transformers takes it; so no more than a layer's exist twice at any time."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self._make = make

    def __getitem__(self, _everything: object) -> Tensor:
        return self._make()


def build(config: ModelConfig, tensors: Mapping[str, Callable[[], Tensor]], dtype: torch.dtype) -> Any:
    """transformers' model of `config`; tensors: official name -> how to make the decoded tensor, without MTP.

    dtype: of all weights but those that transformers itself keeps in float32.  RequestError: there is no
    transformers here that knows the model.
    """
    # Weights are taken one after the other, not by threads that run ahead with all of them.
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    try:
        from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
    except ImportError as error:
        raise RequestError(
            f"transformers with DeepSeek-V4 cannot be imported ({error}); pip install 'transformers>=5.23'"
        ) from None
    document = config.to_json() | {"num_nextn_predict_layers": 0}
    document.pop("quantization_config", None)
    if "compress_ratios" in document:
        document["compress_ratios"] = document["compress_ratios"][: config.num_hidden_layers]
    loaded: Any = DeepseekV4ForCausalLM.from_pretrained(
        None,
        config=DeepseekV4Config.from_dict(document),
        state_dict={name: _Later(make) for name, make in tensors.items()},
        dtype=dtype,
        attn_implementation="eager",
        output_loading_info=True,
    )
    model, report = loaded
    wrong = {key: names for key, names in report.items() if names}
    assert not wrong, f"transformers {version('transformers')} does not know these weights: {wrong}"
    return model.eval()


def checkpoint_tensors(folder: Path, config: ModelConfig, reader: Reader) -> dict[str, Callable[[], Tensor]]:
    """Official name -> how to read and decode it, for every weight outside the MTP blocks."""
    entries = check_layout(folder, config).values()
    return {
        entry.name: partial(_decoded, reader, entry) for entry in entries if not entry.name.startswith("mtp.")
    }


def _decoded(reader: Reader, entry: Entry) -> Tensor:
    weight = read_tensor(reader, entry.weight, entry)
    if not weight.dtype.is_floating_point and entry.scale is None:
        return weight
    scale = None if entry.scale is None else read_tensor(reader, entry.scale, entry)
    return decode(weight, scale)


class Transformers:
    """The model in bfloat16, with its own defaults for everything else."""

    def __init__(self, folder: Path) -> None:
        config = ModelConfig.from_file(folder / "config.json")
        with Reader() as reader:
            self._model = build(config, checkpoint_tensors(folder, config, reader), torch.bfloat16)
        self.config_vocab = config.vocab_size

    def use_threads(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def fresh(self, room: int) -> list[Any]:
        return [None]

    def branch(self, state: list[Any]) -> list[Any]:
        return copy.deepcopy(state)

    def keep(self, state: list[Any]) -> list[Any]:
        return state

    def feed(self, state: list[Any], ids: Tensor) -> None:
        out = self._model(ids, past_key_values=state[0], use_cache=True, logits_to_keep=1)
        state[0] = out.past_key_values

    def wait(self) -> None:
        """Nothing runs later."""

    def about(self) -> dict[str, Any]:
        return {"version": version("transformers"), "weights": "bf16"}
