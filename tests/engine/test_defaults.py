"""Recommended sampling from generation_config.json."""

from __future__ import annotations

import pytest

from fourfold.engine.defaults import recommended
from fourfold.engine.sampler import Sampling
from fourfold.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "sampling"),
    [
        (None, Sampling()),
        ("{}", Sampling()),
        (
            '{"temperature": 0.6, "top_p": 0.95, "top_k": null, "bos_token_id": 0, "min_p": 0.1}',
            Sampling(temperature=0.6, top_p=0.95, min_p=0.1),
        ),
        ('{"repetition_penalty": 1.1}', Sampling(repetition_penalty=1.1)),
        ('{"do_sample": false, "temperature": 0.6}', Sampling(temperature=0.0)),
    ],
)
def test_values(tmp_path, text, sampling):
    if text is not None:
        (tmp_path / "generation_config.json").write_text(text)
    assert recommended(tmp_path) == sampling


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]", '{"temperature": -1}', '{"top_p": "x"}'])
def test_bad_files_are_named(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        recommended(tmp_path)
