"""Counts of experts' uses that outlive a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import fourfold
from fourfold.errors import RequestError
from fourfold.tiers.counts import ExpertCounts
from tests.tiers.conftest import table_of

IDS = torch.arange(20).view(1, -1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "counts.json"


def add(counts: ExpertCounts, amount: int) -> None:
    counts.now[1, 3] += amount
    counts.save()


def test_runs_add_up_whichever_ends_first(tiny_folder, file):
    table = table_of(tiny_folder)
    first, second = ExpertCounts(table, file), ExpertCounts(table, file)
    add(second, 5)
    add(first, 2)
    found = ExpertCounts(table, file)
    assert found.before[1, 3] == found.before.sum() == 7 and not found.now.any()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_run_that_counted_nothing_writes_nothing(tiny_folder, file):
    ExpertCounts(table_of(tiny_folder), file).save()
    assert not file.exists()


def test_a_token_counts_its_experts_in_every_layer(tiny_folder, file):
    model = fourfold.load(tiny_folder, ram="1560KiB", expert_counts=file)
    model(IDS, mtp=True)
    assert model.tiers is not None
    model.tiers.close()
    model.tiers.close()
    data = json.loads(file.read_text())
    assert [sum(row) for row in data["layers"].values()] == [40] * 4 + [38]  # the last token has no guess
    assert next(iter(data["layers"])) == "layers.0.ffn.experts"


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        "[]",
        '{"format": "fourfold expert counts 1", "layers": {"layers.0.ffn.experts": [1, 2]}}',
        None,
    ],
)
def test_another_file_is_refused_and_kept(tiny_folder, file, content):
    table = table_of(tiny_folder)
    if content is None:  # a count that is none
        rows = {name: [-1] * table.per_layer for name in table.layers}
        content = json.dumps({"format": "fourfold expert counts 1", "layers": rows})
    file.write_text(content)
    with pytest.raises(
        RequestError, match=r"counts\.json (cannot be read|has no expert counts of this model)"
    ):
        fourfold.load(tiny_folder, ram="1560KiB", expert_counts=file)
    assert file.read_text() == content


def test_a_file_that_breaks_meanwhile_is_told_and_kept(tiny_folder, file, capsys):
    counts = ExpertCounts(table_of(tiny_folder), file)
    file.write_text("{")
    add(counts, 1)
    assert "the experts' uses are not counted in" in capsys.readouterr().err and file.read_text() == "{"


def test_a_model_in_one_place_counts_nothing(tiny_folder, file, capsys):
    fourfold.load(tiny_folder, expert_counts=file)(IDS)
    assert "all experts are in one place" in capsys.readouterr().err and not file.exists()


def test_counts_are_whole_numbers_of_the_table(tiny_folder):
    counts = ExpertCounts(table_of(tiny_folder))
    assert counts.before.dtype == np.int64 and counts.before.shape == (5, 8)
