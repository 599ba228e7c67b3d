"""Every check passes on this machine, and each of them notices a wrong kernel."""

from __future__ import annotations

import pytest
import torch

from fourfold import kernels
from fourfold.conformance.checkpoint import check_checkpoint, kl_divergence
from fourfold.conformance.golden import check_golden
from fourfold.conformance.kernel_cases import cases
from fourfold.conformance.kernels import check_kernels
from fourfold.kernels import reference


def test_cases_are_the_same_every_time():
    first, again = (next(iter(cases())).arguments[0] for _ in range(2))
    assert torch.equal(first, again)


@pytest.fixture
def broken(monkeypatch):
    """broken(operation): that operation returns results that are off by 1 % (choices: by one)."""

    def breaks(name: str) -> None:
        def wrong(*arguments, **options):
            got = getattr(reference, name)(*arguments, **options)
            spoil = lambda t: t * 1.01 if t.is_floating_point() else t + 1  # noqa: E731
            return tuple(map(spoil, got)) if isinstance(got, tuple) else spoil(got)

        table = {**kernels._TABLES.get("cpu", kernels._REFERENCE), name: wrong}
        monkeypatch.setitem(kernels._TABLES, "cpu", table)

    return breaks


@pytest.mark.parametrize("name", kernels.OPERATIONS)
def test_a_wrong_kernel_is_noticed(broken, name):
    broken(name)
    failed = {check.name for check in check_kernels("cpu") if not check.passed}
    assert failed == {name}


def test_a_kernel_that_raises_fails_its_checks(monkeypatch):
    def raises(*_: object, **__: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setitem(kernels._TABLES, "cpu", {**kernels._REFERENCE, "pool": raises})
    assert {check.name for check in check_kernels("cpu") if not check.passed} == {"pool"}


def test_golden_vectors_hold():
    checks = list(check_golden("cpu"))
    assert {check.name for check in checks} == {"prefill", "streams", "decode", "mtp"}
    assert [check for check in checks if not check.passed] == []


def test_golden_vectors_notice_a_wrong_kernel(broken):
    broken("hc_post")
    assert any(not check.passed for check in check_golden("cpu"))


def test_a_checkpoint_is_certified(tiny_folder):
    checks = list(check_checkpoint(tiny_folder, "cpu"))
    assert [check for check in checks if not check.passed] == []
    assert {check.name for check in checks} == {"finite", "one path", "deployed"}


def test_kl_is_zero_for_equals_and_positive_otherwise():
    p, q = torch.randn(2, 1, 5, 11).unbind()
    assert float(kl_divergence(p, p).abs().max()) < 1e-12
    assert float(kl_divergence(p, q).min()) > 0
