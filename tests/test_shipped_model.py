"""The model that ships with the package: its English, its endings, the README lines, its certificate."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import fourfold
from fourfold.conformance.checkpoint import check_checkpoint
from fourfold.conformance.report import Check
from fourfold.engine.config import EngineConfig
from fourfold.protocol import Chat

COMMON = "the a and to was he she it they said of in his her with day little you happy very"


@pytest.fixture(scope="module")
def m():
    return fourfold.load(fourfold.shipped_model())


def text_of(m, prompt: str, **options) -> str:
    return "".join(
        fourfold.generate(m, prompt, **{"max_tokens": 120, "temperature": 0.7, "seed": 1, **options})
    )


def test_every_part_of_v4_is_in_it(m):
    assert set(m.config.layer_kinds) == {"swa", "csa", "hca"}
    assert any(m.config.hash_layers)
    assert not all(m.config.hash_layers)
    assert m.config.num_nextn_predict_layers == 1
    assert m.config.expert_dtype == "fp4"


def test_it_is_small_enough_to_ship():
    files = [file for file in fourfold.shipped_model().rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 60e6


def test_a_story_is_made_of_english_words(m):
    words = re.findall(r"[a-z]+", text_of(m, "Once upon a time").lower())
    assert len(words) >= 40
    assert len(set(words)) >= 20
    common = set(COMMON.split())
    assert sum(word in common for word in words) / len(words) > 0.2


def test_a_story_ends_by_itself(m):
    ends = []
    for seed in range(4):
        answer = fourfold.generate(m, "Once upon a time", max_tokens=400, temperature=0.7, seed=seed)
        list(answer)
        ends.append(answer.finish_reason)
    assert ends.count("stop") >= 3


def test_a_chat_answer_ends_by_itself(m):
    ids = Chat(messages=[{"role": "user", "content": "Hello! How are you?"}]).prompt().encode(m.tokenizer)
    answer = fourfold.generate(m, ids, max_tokens=200, temperature=0.7, seed=1)
    assert "".join(answer).strip()
    assert answer.finish_reason == "stop"


def test_greedy_is_the_same_from_any_chunking(m, monkeypatch):
    prompt = "One day a cat and a dog went to the park to play with a red ball"
    whole = text_of(m, prompt, temperature=0.0, max_tokens=30)
    monkeypatch.setattr(EngineConfig, "step_tokens", 3)
    assert whole == text_of(m, prompt, temperature=0.0, max_tokens=30)


def test_the_readmes_lines_run(tmp_path, capsys):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    block = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]
    script = tmp_path / "readme.py"
    script.write_text(block.replace("max_tokens=200", "max_tokens=20"), encoding="utf-8")
    runpy.run_path(str(script))
    assert capsys.readouterr().out.strip()


def test_its_certificate_is_that_of_a_trained_model():
    findings = list(check_checkpoint(fourfold.shipped_model(), "cpu"))
    checks = [finding for finding in findings if isinstance(finding, Check)]
    assert [check for check in checks if not check.passed] == []
    assert any(check.name == "indexer" for check in checks)
    assert any("trained model" in check.detail for check in checks if check.name == "deployed")
