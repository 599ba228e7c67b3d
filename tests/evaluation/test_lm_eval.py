"""lm-eval itself runs tasks with local data through our adapter, and finds what we find."""

from __future__ import annotations

import json
from pathlib import Path

import lm_eval
import pytest
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

import fourfold
from fourfold.errors import RequestError
from fourfold.evaluation.lm_eval import FourfoldLM
from fourfold.evaluation.measures import Evaluator
from fourfold.evaluation.tasks import read_task

CHOICES = """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: FILE}
test_split: train
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def model(tiny_folder: Path) -> fourfold.Transformer:
    return fourfold.load(tiny_folder)


def test_a_task_of_theirs_gives_our_figure(
    model: fourfold.Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "choice.jsonl"
    words = ["cat", "time", "upon", "once", "was", "there"]
    records = [
        {"context": f"{a} {b}", "choices": [f" {w}" for w in words], "answer": i}
        for i, (a, b) in enumerate(zip(words, reversed(words), strict=True))
    ]
    data.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    (tmp_path / "local_choice.yaml").write_text(CHOICES.replace("FILE", str(data)), encoding="utf-8")
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=FourfoldLM(model), tasks=["local_choice"], task_manager=tasks, bootstrap_iters=0
    )
    figures = Evaluator(model, "preview", 8).run(read_task(data), lambda done: None)
    assert found["results"]["local_choice"]["acc,none"] == pytest.approx(figures[0].ratio.value)


def asked(kind: str, *arguments: object) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_continuations_end_at_a_stop_string(model: fourfold.Transformer) -> None:
    lm = FourfoldLM(model)
    free = lm.generate_until([asked("generate_until", "once", {"max_gen_toks": 8})])[0]
    assert free == "".join(fourfold.generate(model, "once", max_tokens=8, temperature=0.0))
    stop = free[len(free) // 2]
    cut = lm.generate_until([asked("generate_until", "once", {"until": [stop], "max_gen_toks": 8})])[0]
    assert cut == free[: free.index(stop)]


def test_settings_that_we_lack_are_named(model: fourfold.Transformer) -> None:
    with pytest.raises(RequestError, match="a task sets num_beams"):
        FourfoldLM(model).generate_until([asked("generate_until", "once", {"num_beams": 4})])
