"""The example in docs/plan.md is what the command prints."""

from __future__ import annotations

import datetime
import re
import shlex
from pathlib import Path

import pytest

from fourfold.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "plan.md"


def test_the_example_is_true(capsys, monkeypatch):
    class Then(datetime.datetime):
        """The day on which the example was made: hosted prices change."""

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Then:
            return cls(2026, 11, 22, tzinfo=tz)

    monkeypatch.setattr("fourfold.plan.planner.datetime.datetime", Then)
    found = re.search(r"```sh\nfourfold (.*?)\n```\n```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert found is not None
    assert main(shlex.split(found[1])) == 0
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert shown[: shown.index("Assumptions") - 1] == found[2].splitlines()


def test_the_page_is_short():
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 75


@pytest.mark.parametrize("name", ["hardware.toml", "efficiency.toml", "prices.toml", "reports.toml"])
def test_the_tables_are_named(name):
    assert name in PAGE.read_text(encoding="utf-8")
