"""bench/speculation.py: one cell on the shipped model, as small as can be."""

from __future__ import annotations

import fourfold
from bench.speculation import Cell, measure, table, text_ids


def test_a_row_of_the_table():
    model = fourfold.load(fourfold.shipped_model(), numerics="fast")
    row = measure(model, Cell(batch=2, context=20, temperature=0.0, tokens=8), text_ids(model)[:5000], 1)
    assert row["tokens"] == 2 * 7
    assert {len(times) for times in row["seconds_per_token"].values()} == {1}
    assert row["noise"] > 0
    assert row["mtp"]["accepted"] <= row["mtp"]["drafted"]
    assert table([row]).count("\n") == 1
