"""Recommended sampling from generation_config.json."""

from __future__ import annotations

import pytest

from fourfold.engine.defaults import Recommended, recommended
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
    assert recommended(tmp_path).sampling == sampling


def test_lengths_ends_and_what_is_not_heeded(tmp_path):
    def read(text):
        (tmp_path / "generation_config.json").write_text(text)
        return recommended(tmp_path)

    found = read(
        '{"max_new_tokens": 90, "eos_token_id": [1, 7], "num_beams": 4, "bos_token_id": 0, "top_h": null, '
        '"transformers_version": "5.0", "suppress_tokens": [3]}'
    )
    assert found == Recommended(max_tokens=90, stop_tokens=(1, 7), unused=("num_beams", "suppress_tokens"))
    assert read('{"eos_token_id": 1}').stop_tokens == (1,)
    greedy = read('{"do_sample": false, "top_p": 0.5, "repetition_penalty": 1.2}')
    assert greedy.sampling == Sampling(temperature=0.0, repetition_penalty=1.2)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 100_000,
        "[]",
        '{"temperature": -1}',
        '{"top_p": "x"}',
        '{"max_new_tokens": 0}',
        '{"eos_token_id": ["x"]}',
    ],
)
def test_bad_files_are_named(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        recommended(tmp_path)
