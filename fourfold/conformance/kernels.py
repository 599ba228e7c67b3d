"""Every kernel of the contract against its reference, on one device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fourfold import kernels
from fourfold.conformance.kernel_cases import Case, cases
from fourfold.conformance.report import Check, Difference, broken, difference
from fourfold.errors import FourfoldError
from fourfold.kernels import reference
from fourfold.kernels.waiting import wait

_TIMED = 3  # calls after the first, which may compile or load something


def check_kernels(device: str) -> Iterator[Check]:
    """One check a case; `detail` says the case and what ran it. One that fails is infinitely wrong."""
    backends = kernels.table(torch.device(device).type)
    for case in cases():
        detail = f"{case.label} ({backends[case.operation].split(':')[0]})"
        try:
            worst = compare_case(case, device)
            seconds, reference_seconds = _times(case, device)
        except (RuntimeError, FourfoldError) as error:
            yield broken("kernel", case.operation, detail, error)
            continue
        yield Check(
            group="kernel",
            name=case.operation,
            detail=detail,
            value=worst.relative,
            bound=case.bound,
            max_abs=worst.max_abs,
            mean_abs=worst.mean_abs,
            seconds=seconds,
            reference_seconds=reference_seconds,
        )


def run_case(case: Case, device: str) -> Difference:
    """As `compare_case`; infinite where the operation fails."""
    try:
        return compare_case(case, device)
    except (RuntimeError, FourfoldError):
        return Difference(float("inf"), float("inf"), float("inf"))


def compare_case(case: Case, device: str) -> Difference:
    """The largest difference over the case's results. The reference runs on the CPU."""
    expected = _results(getattr(reference, case.operation)(*case.arguments, **case.options))
    got = _results(getattr(kernels, case.operation)(*_moved(case.arguments, device), **case.options))
    return max((difference(g, e) for g, e in zip(got, expected, strict=True)), key=lambda d: d.relative)


def _times(case: Case, device: str) -> tuple[float, float]:
    """Seconds of the operation and of its reference."""
    here, moved = torch.device(device), _moved(case.arguments, device)
    own = partial(getattr(kernels, case.operation), *moved, **case.options)
    plain = partial(getattr(reference, case.operation), *case.arguments, **case.options)
    return _best(own, here), _best(plain, torch.device("cpu"))


def _best(run: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(_TIMED):
        wait(device)
        begun = time.perf_counter()
        run()
        wait(device)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, tuple):
        return tuple(_moved(part, device) for part in value)
    return value.to(device) if isinstance(value, Tensor) else value


def _results(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
