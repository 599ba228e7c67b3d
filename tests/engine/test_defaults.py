"""Recommended sampling from generation_config.json."""

from __future__ import annotations

import pytest

from fourfold.engine.defaults import recommended
from fourfold.engine.sampler import Sampling
from fourfold.errors import ConfigError, RequestError


@pytest.mark.parametrize(
    ("text", "sampling"),
    [
        (None, Sampling()),
        ("{}", Sampling()),
        (
            '{"temperature": 0.6, "top_p": 0.95, "top_k": null, "bos_token_id": 0}',
            Sampling(temperature=0.6, top_p=0.95),
        ),
        ('{"do_sample": false, "temperature": 0.6}', Sampling(temperature=0.0)),
    ],
)
def test_values(tmp_path, text, sampling):
    if text is not None:
        (tmp_path / "generation_config.json").write_text(text)
    assert recommended(tmp_path) == sampling


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", ConfigError),
        ("[]", ConfigError),
        ('{"temperature": -1}', RequestError),
        ('{"top_p": "x"}', RequestError),
    ],
)
def test_bad_files_are_named(tmp_path, text, error):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(error):
        recommended(tmp_path)
