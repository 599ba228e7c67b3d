"""Loading a checkpoint: what can be wrong is told before the weights are read."""

from __future__ import annotations

import shutil

import pytest
import torch

import fourfold
from fourfold import loading
from fourfold.errors import ConfigError, RequestError, TokenizerError


@pytest.fixture
def folder(tiny_folder, tmp_path, monkeypatch):
    """A checkpoint whose weights must not be read."""

    def read(*_: object) -> None:
        pytest.fail("the weights were read")

    monkeypatch.setattr(loading, "read_items", read)
    return shutil.copytree(tiny_folder, tmp_path / "checkpoint")


def test_a_broken_tokenizer_is_told_before_the_weights(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="cannot be read"):
        fourfold.load(folder)


def test_numerics_are_checked_before_the_weights(folder):
    with pytest.raises(ConfigError, match="numerics is 'rough'; allowed: exact, deployed"):
        fourfold.load(folder, numerics="rough")


def test_the_device_comes_before_everything():
    with pytest.raises(RequestError, match="device 'abacus' cannot be used here"):
        fourfold.load("/no/such/folder", device="abacus")


def test_a_loaded_model_has_its_tokenizer_and_no_gradients(tiny_folder):
    m = fourfold.load(tiny_folder, device=torch.device("cpu"))
    assert m.tokenizer is not None
    assert not any(parameter.requires_grad for parameter in m.parameters())
