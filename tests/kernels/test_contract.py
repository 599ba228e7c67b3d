"""Every case of the contract on one device: `pytest tests/kernels --chip mychip` for one of your own."""

from __future__ import annotations

import pytest
import torch

from fourfold import kernels
from fourfold.conformance.kernel_cases import cases
from fourfold.conformance.kernels import run_case
from fourfold.kernels import cpu
from fourfold.loading import usable_device

CASES = list(cases())


@pytest.fixture(scope="module")
def chip(request: pytest.FixtureRequest) -> torch.device:
    return usable_device(request.config.getoption("--chip"))


def test_every_operation_has_several_cases():
    counts = {name: sum(case.operation == name for case in CASES) for name in kernels.OPERATIONS}
    assert min(counts.values()) >= 2, counts


def test_the_chip_has_kernels_of_its_own(chip):
    own = [name for name, note in kernels.table(chip.type).items() if note != "reference"]
    assert own or (chip.type == "cpu" and not cpu.available()), f"no kernels are registered for {chip.type}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.operation}: {case.label}")
def test_kernel_within_its_bound(chip, case):
    assert run_case(case, str(chip)).relative <= case.bound
