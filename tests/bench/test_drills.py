"""bench/drills.py and bench/serving.py, as short as can be."""

from __future__ import annotations

import pytest

from bench.drills import Drills, drill, table
from bench.serving import bodies, over_http


@pytest.mark.parametrize("name", ["kill", "nonsense"])
def test_nothing_is_lost(tmp_path, name):
    row = drill(Drills(tmp_path, short=True), name)
    assert row["lost"] == 0 and row["whole"] + row["told"] == row["asked"]
    assert table([row]).count("\n") == 2


def test_a_round_of_streams_and_an_end_under_load(tmp_path):
    drills = Drills(tmp_path, short=True)
    with drills.serve("--drain-timeout", "60") as server:
        spent = over_http(server, bodies(["a", "b"], 5))
        assert spent["seconds"] > 0 and set(spent) == {"seconds", "client", "engine", "server"}
        row = drills.disturbed(server, server.terminate)
        assert row["whole"] == row["asked"] and server.wait(60) == 0
