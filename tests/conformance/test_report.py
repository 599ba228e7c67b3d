"""Measuring differences, and what a certificate says."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fourfold.conformance.report import Check, NotExercised, Report, difference, machine


def test_difference_is_relative_to_the_rms_or_the_unit():
    expected = torch.tensor([3.0, -4.0])
    found = difference(torch.tensor([3.0, -4.5]), expected)
    assert found.max_abs == 0.5
    assert found.mean_abs == 0.25
    assert found.relative == pytest.approx(0.5 / math.sqrt(12.5))
    assert difference(torch.tensor([3.0, -4.5]), expected, unit=2.0).relative == 0.25


def test_integers_count_what_differs():
    assert difference(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4])).relative == 0.25


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_infinitely_wrong(bad):
    assert difference(torch.tensor([1.0, bad]), torch.tensor([1.0, 2.0])).relative == math.inf


def check(value: float, bound: float, at_least: bool = False) -> Check:
    return Check(group="kernel", name="linear", detail="", value=value, bound=bound, at_least=at_least)


def test_bounds():
    assert check(1.0, 1.0).passed
    assert not check(1.1, 1.0).passed
    assert not check(math.nan, 1.0).passed
    assert check(0.9, 0.8, at_least=True).passed
    assert not check(0.7, 0.8, at_least=True).passed
    assert not check(math.nan, 0.8, at_least=True).passed


def test_report_is_json_even_with_numbers_that_json_lacks():
    report = Report("cpu", machine("cpu"), [check(0.0, 1.0), check(math.nan, 1.0), check(math.inf, 1.0)])
    report.add(NotExercised("the indexer's choice", "needs 2,052 tokens"))
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert not document["passed"]
    assert [entry["passed"] for entry in document["checks"]] == [True, False, False]
    assert document["not_exercised"] == [{"what": "the indexer's choice", "why": "needs 2,052 tokens"}]
    assert document["machine"]["torch"] == torch.__version__
