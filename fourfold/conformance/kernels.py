"""Every kernel of the contract against its reference, on one device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fourfold import kernels
from fourfold.conformance.kernel_cases import Case, cases
from fourfold.conformance.report import Check, Difference, difference
from fourfold.errors import FourfoldError
from fourfold.kernels import reference


def check_kernels(device: str) -> Iterator[Check]:
    """One check a case; `detail` says the case and what ran it. One that fails is infinitely wrong."""
    backends = kernels.table(torch.device(device).type)
    for case in cases():
        backend = backends[case.operation].split(":")[0]
        worst = run_case(case, device)
        yield Check(
            group="kernel",
            name=case.operation,
            detail=f"{case.label} ({backend})",
            value=worst.relative,
            bound=case.bound,
            max_abs=worst.max_abs,
            mean_abs=worst.mean_abs,
        )


def run_case(case: Case, device: str) -> Difference:
    """The largest difference over the case's results. The reference runs on the CPU."""
    expected = _results(getattr(reference, case.operation)(*case.arguments, **case.options))
    try:
        got = _results(getattr(kernels, case.operation)(*_moved(case.arguments, device), **case.options))
    except (RuntimeError, FourfoldError):
        return Difference(float("inf"), float("inf"), float("inf"))
    return max((difference(g, e) for g, e in zip(got, expected, strict=True)), key=lambda d: d.relative)


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, tuple):
        return tuple(_moved(part, device) for part in value)
    return value.to(device) if isinstance(value, Tensor) else value


def _results(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
