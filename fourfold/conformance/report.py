"""The certificate: what was measured, against which bound, on which machine."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fourfold.kernels import ascend
from fourfold.kernels.cpu.processor import processor

_LONGEST = 400  # characters of an error


@dataclass(frozen=True, kw_only=True)
class Check:
    """One measured value and its bound.

    group: "kernel", "golden", "slice" or "checkpoint". value: the error (or agreement) that is judged;
    at_least: whether the bound is a lower one. max_abs, mean_abs: errors in the tensor's own unit, if there
    are any. seconds: what was measured took so long on the device, reference_seconds: and its reference on
    the CPU. error: what kept it from a result, shortened.
    """

    group: str
    name: str
    detail: str
    value: float
    bound: float
    at_least: bool = False
    max_abs: float | None = None
    mean_abs: float | None = None
    seconds: float | None = None
    reference_seconds: float | None = None
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Within its bound; NaN never is."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def broken(group: str, name: str, detail: str, error: Exception) -> Check:
    """A check that ended with an error: infinitely wrong."""
    text = (str(error).strip() or repr(error))[:_LONGEST]
    return Check(group=group, name=name, detail=detail, value=float("inf"), bound=0.0, error=text)


@dataclass(frozen=True)
class NotExercised:
    """What a certificate says nothing about, and why."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"not exercised: {self.what} ({self.why})"


Finding: TypeAlias = Check | NotExercised


@dataclass
class Report:
    """All findings of one run."""

    device: str
    machine: dict[str, str]
    checks: list[Check] = field(default_factory=list)
    not_exercised: list[NotExercised] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """File it where it belongs."""
        if isinstance(finding, Check):
            self.checks.append(finding)
        else:
            self.not_exercised.append(finding)

    @property
    def passed(self) -> bool:
        """Whether every check is within its bound."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain values; not-finite numbers become None, which JSON has a word for."""
        checks = [{**asdict(check), "passed": check.passed} for check in self.checks]
        for check in checks:
            for key, value in check.items():
                if (isinstance(value, float) and value != value) or value in (float("inf"), float("-inf")):
                    check[key] = None
        return {
            "passed": self.passed,
            "device": self.device,
            "machine": self.machine,
            "checks": checks,
            "not_exercised": [asdict(item) for item in self.not_exercised],
        }


@dataclass(frozen=True)
class Difference:
    """How far a result is from the expected one: absolute errors, and the largest relative to `unit`."""

    max_abs: float
    mean_abs: float
    relative: float


def difference(got: Tensor, expected: Tensor, unit: float | None = None) -> Difference:
    """Compare two tensors of one shape. unit: what errors are read against (default: rms of the expected).

    Integers count the share of entries that differ. A value that is not finite makes the error infinite.
    """
    got, expected = got.detach().cpu(), expected.detach().cpu()
    assert got.shape == expected.shape, (got.shape, expected.shape)
    if expected.numel() == 0:
        return Difference(0.0, 0.0, 0.0)
    if not expected.is_floating_point():
        share = float((got != expected).double().mean())
        return Difference(share, share, share)
    wanted = expected.double()
    error = (got.double() - wanted).abs()
    if not bool(torch.isfinite(error).all()):
        return Difference(float("inf"), float("inf"), float("inf"))
    if unit is None:
        unit = float(wanted.square().mean().sqrt())
    largest = float(error.max())
    return Difference(largest, float(error.mean()), largest / unit if unit else largest)


def machine(device: str) -> dict[str, str]:
    """What this ran on: processor or accelerator, versions, threads."""
    kind = torch.device(device).type
    facts = ascend.device.describe() if kind == "npu" else {}
    return {
        "device": _processor() if kind == "cpu" else _accelerator(device),
        **{key: value for key, value in facts.items() if key != "device"},
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }


def _accelerator(device: str) -> str:
    """Its name, where torch's module for this kind of device tells it."""
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return device if name is None else str(name(device))


def _processor() -> str:
    """Name of the CPU and the number of its cores that we may use."""
    return f"{processor()}, {os.cpu_count()} cores"
