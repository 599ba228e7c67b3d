"""Every check passes on this machine, and each of them notices a wrong kernel."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

from fourfold import kernels
from fourfold.conformance.checkpoint import check_checkpoint
from fourfold.conformance.golden import check_golden
from fourfold.conformance.kernel_cases import cases
from fourfold.conformance.kernels import check_kernels
from fourfold.conformance.report import Check, NotExercised
from fourfold.kernels import composed, reference, registry


def test_cases_are_the_same_every_time():
    first, again = (next(iter(cases())).arguments[0] for _ in range(2))
    assert torch.equal(first, again)


@pytest.fixture
def broken(monkeypatch):
    """broken(operation): that operation returns results that are off by 1 % (choices: by one)."""

    kernels.discover("cpu")  # or its first use would register the device's own over the broken one

    def breaks(name: str, by: float = 1.01) -> None:
        def wrong(*arguments, **options):
            got = getattr(reference, name)(*arguments, **options)
            spoil = lambda t: t * by if t.is_floating_point() else t + 1  # noqa: E731
            return tuple(map(spoil, got)) if isinstance(got, tuple) else spoil(got)

        table = {**registry._TABLES.get("cpu", registry._REFERENCE), name: wrong}
        monkeypatch.setitem(registry._TABLES, "cpu", table)
        monkeypatch.setitem(registry._NOTES, "cpu", {name: "broken"})

    return breaks


def made_of(name: str) -> set[str]:
    """An operation, and those that call it, themselves or through others (composed.py)."""
    found = {name}
    while more := {
        whole
        for whole in set(kernels.COMPOSED) - found
        if found & set(re.findall(r"ops\.(\w+)\(", inspect.getsource(getattr(composed, whole))))
    }:
        found |= more
    return found


@pytest.mark.parametrize("name", kernels.OPERATIONS)
def test_a_wrong_kernel_is_noticed(broken, name):
    broken(name)
    failed = {check.name for check in check_kernels("cpu") if not check.passed}
    # What runs as its parts is as wrong as they are, and nothing else.
    assert name in failed
    assert failed <= made_of(name)


def test_a_kernel_that_raises_fails_its_checks(monkeypatch):
    def raises(*_: object, **__: object) -> None:
        raise RuntimeError("no such instruction")

    kernels.discover("cpu")  # as in `broken`
    monkeypatch.setitem(registry._TABLES, "cpu", {**registry._REFERENCE, "pool": raises})
    assert {check.name for check in check_kernels("cpu") if not check.passed} == made_of("pool")


def test_golden_vectors_hold():
    checks = list(check_golden("cpu"))
    assert {check.name for check in checks} == {"prefill", "streams", "decode", "mtp", "distribution"}
    assert [check for check in checks if not check.passed] == []


def test_golden_vectors_notice_a_wrong_kernel(broken):
    broken("hc_moe")
    broken("block")
    failed = {check.name for check in check_golden("cpu") if not check.passed}
    assert {"prefill", "streams", "decode", "mtp", "distribution"} == failed


def judged(folder: Path) -> list[Check]:
    """All checks of a checkpoint of which nothing is left out."""
    checks = []
    for finding in check_checkpoint(folder, "cpu"):
        assert isinstance(finding, Check), finding
        checks.append(finding)
    return checks


def test_a_checkpoint_is_certified(tiny_folder, broken):
    broken("rope", by=1.0)  # a kernel of the device's own, even where the extension is not built
    checks = judged(tiny_folder)
    assert [check for check in checks if not check.passed] == []
    names = {"finite", "indexer", "one path", "same bits", "reference", "deployed", "fast"}
    assert {check.name for check in checks} == names
    bits = [check for check in checks if check.name == "same bits"]
    assert {check.detail.split(",")[0] for check in bits} == {"exact", "deployed", "fast"}
    assert all(check.bound == 1.0 and "(not required)" in check.detail for check in bits)
    for name in ("reference", "deployed", "fast"):
        details = [check.detail for check in checks if check.name == name]
        for kind in ("swa", "csa", "hca"):
            assert f"streams, {kind} blocks" in details
        for what in ("typical position", "mean KL", "same first choice"):
            assert any(what in detail for detail in details)
    assert any("random weights" in check.detail for check in checks)
    assert any(check.name == "fast" and "over that of deployed" in check.detail for check in checks)


def test_bits_that_follow_the_batch_are_noticed(tiny_folder, monkeypatch):
    """An error far below every other bound, but of a device that runs all operations itself."""
    kernels.discover("cpu")
    table = registry._TABLES.get("cpu", registry._REFERENCE)

    def follows(x, *arguments):
        return table["linear"](x, *arguments) * (1 + 2**-22 * (x[..., 0].numel() % 2))

    monkeypatch.setitem(registry._TABLES, "cpu", {**table, "linear": follows})
    monkeypatch.setitem(registry._NOTES, "cpu", dict.fromkeys(kernels.OPERATIONS, "native"))
    failed = [check for check in judged(tiny_folder) if not check.passed]
    assert {check.name for check in failed} == {"same bits"}


def test_a_wrong_kernel_shows_against_the_reference(tiny_folder, broken):
    broken("linear")
    failed = [check for check in judged(tiny_folder) if not check.passed]
    assert {check.name for check in failed} == {"reference"}
    assert {"streams, swa blocks", "streams, csa blocks"} <= {check.detail for check in failed}


def test_without_kernels_of_its_own_nothing_is_compared_with_the_reference(tiny_folder, monkeypatch):
    monkeypatch.setitem(registry._TABLES, "cpu", registry._REFERENCE)
    monkeypatch.setitem(registry._NOTES, "cpu", {})
    found = list(check_checkpoint(tiny_folder, "cpu"))
    (left_out,) = (finding for finding in found if isinstance(finding, NotExercised))
    assert str(left_out) == (
        "not exercised: kernels against the reference (cpu has no kernels of its own here)"
    )
