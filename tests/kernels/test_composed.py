"""Operations that are several others in a row: where a chip runs them as one, their bits are the parts'."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fourfold import kernels
from fourfold.conformance.kernel_cases import Case, cases
from fourfold.kernels import composed, cpu

CASES = [case for case in cases() if case.operation in kernels.COMPOSED]
ISAS = [] if cpu.native is None else cpu.native.supported_isas()


@pytest.fixture(params=ISAS or ["reference"])
def isa(request: pytest.FixtureRequest) -> Iterator[None]:
    before = cpu.describe()["isa"]
    if cpu.native is not None:
        assert cpu.native.use_isa(request.param)
    yield
    if cpu.native is not None:
        cpu.native.use_isa(before)


def tensors(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def written(case: Case) -> tuple[Tensor, ...]:
    """What the call has put in place."""
    return tuple(slot.clone() for slot in case.arguments[2]) if case.operation == "block" else ()


@pytest.mark.parametrize("threads", [1, 2])
def test_one_call_has_the_bits_of_its_parts(isa: None, threads: int) -> None:
    before = cpu.describe()["threads"]
    cpu.use_threads(threads)
    try:
        for case in CASES:
            parts = getattr(composed, case.operation)
            want = (*tensors(parts(kernels, *case.arguments, **case.options)), *written(case))
            got = (
                *tensors(getattr(kernels, case.operation)(*case.arguments, **case.options)),
                *written(case),
            )
            assert len(got) == len(want)
            for a, b in zip(got, want, strict=True):
                assert a.dtype == b.dtype
                assert torch.equal(a, b), (case.operation, case.label)
    finally:
        cpu.use_threads(int(before))


def test_gradients_pass_through_the_parts() -> None:
    for case in CASES:
        if case.operation == "block":
            continue  # it writes in place
        x = case.arguments[0].clone().requires_grad_()
        result = tensors(getattr(kernels, case.operation)(x, *case.arguments[1:], **case.options))
        torch.stack([part.float().sum() for part in result]).sum().backward()
        assert x.grad is not None, (case.operation, case.label)
