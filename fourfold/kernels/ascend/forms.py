"""Which form of an operation runs: plain aten (T0), a public torch_npu operator (T1) or a package's (T2).

A form is chosen once, when the device is first used: its operators must exist with exactly the schema that
it was written for, its documentation must list the generation, and a trial on small arguments must give what
the reference gives.  Then, call by call, documented limits are checked before the operator is called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fourfold.kernels import reference
from fourfold.kernels.ascend.generation import Generation
from fourfold.kernels.ascend.schemas import SCHEMAS

TIERS = ("T0", "T1", "T2")
Operation: TypeAlias = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Form:
    """One operation of the contract by operators of the vendor.

    operators: their names with the namespace.  generations: those that the operators' documentation lists.
    covers: the calls that this form is meant for, in words and as a test; others are the lower tier's.
    limit: why a call is beyond what the operator's documentation allows, None where it is not.
    trial: small arguments on the CPU, and how near the result must come to the reference's, in its rms.
    """

    operation: str
    tier: str
    operators: tuple[str, ...]
    generations: frozenset[str]
    run: Operation
    note: str
    covers: Callable[..., bool]
    limit: Callable[..., str | None]
    trial: Callable[[], tuple[Any, ...]]
    options: Mapping[str, Any]
    bound: float

    @property
    def title(self) -> str:
        """T1 npu_rms_norm, T2 custom.npu_hc_pre"""
        names = (name.removeprefix("npu::").replace("::", ".") for name in self.operators)
        return f"{self.tier} {' + '.join(names)}"


def choose(
    forms: Iterable[Form], plain: Mapping[str, Operation], generation: Generation | None, highest: str
) -> tuple[dict[str, Operation], dict[str, str]]:
    """What runs each operation of `plain`, and a note on it: tier, operators, coverage, refusals.

    highest: the last of TIERS that may be used.
    """
    operations, notes = dict(plain), dict.fromkeys(plain, "")
    in_use: dict[str, list[Form]] = {name: [] for name in plain}
    for form in sorted(forms, key=lambda form: form.tier, reverse=True):
        why = _refusal(form, generation, highest)
        if why is None:
            in_use[form.operation].append(form)
        else:
            notes[form.operation] += f"; {form.title} refused: {why}"
    for name, chosen in in_use.items():
        if chosen:
            operations[name] = _first_that_fits(chosen, plain[name])
        what = ", ".join(f"{form.title} ({form.note})" for form in chosen)
        notes[name] = (f"{what}, otherwise T0" if what else "T0 aten") + notes[name]
    return operations, notes


def _refusal(form: Form, generation: Generation | None, highest: str) -> str | None:
    if form.tier > highest:
        return f"FOURFOLD_ASCEND_TIER={highest}"
    for name in form.operators:
        if why := schema_problem(name):
            return why
    if generation is None or generation.name not in form.generations:
        where = "this generation" if generation is None else generation.name
        return f"{where} is not in its documentation ({', '.join(sorted(form.generations))} are)"
    return _trial_problem(form)


def schema_problem(name: str) -> str | None:
    """Why the operator is not the one that we know: it is missing, or takes other arguments."""
    space, _, operator = name.partition("::")
    packet = getattr(getattr(torch.ops, space), operator, None)
    if packet is None:
        return f"{operator} is missing"
    found = str(packet.default._schema) if "default" in packet.overloads() else "no default overload"
    expected = str(torch._C.parse_schema(f"{space}::{SCHEMAS[name]}"))
    return None if found == expected else f"{operator} has another schema: {found}"


def _trial_problem(form: Form) -> str | None:
    arguments = form.trial()
    moved = [_to_device(value) for value in arguments]
    try:
        got = form.run(*moved, **form.options)
        pairs = zip(_results(got), _results(_expected(form, arguments)), strict=True)
        worst = max(_distance(a, b) for a, b in pairs)
    except Exception as error:  # whatever a vendor's operator may raise
        return f"a trial failed: {(str(error).strip() or repr(error)).splitlines()[0][:160]}"
    return (
        None if worst <= form.bound else f"a trial is {worst:.1e} from the reference, at most {form.bound:g}"
    )


def _expected(form: Form, arguments: tuple[Any, ...]) -> Any:
    return getattr(reference, form.operation)(*arguments, **form.options)


def _to_device(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_to_device(part) for part in value)
    return value.to("npu") if isinstance(value, Tensor) else value


def _results(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _distance(got: Tensor, expected: Tensor) -> float:
    """Largest difference in units of the expected rms; of whole numbers, the largest difference."""
    got = got.cpu().double()
    if got.shape != expected.shape:
        return float("inf")
    error = (got - expected.double()).abs().max()
    unit = expected.double().square().mean().sqrt() if expected.is_floating_point() else 1.0
    found = float(error / unit)
    return found if found == found else float("inf")


def _first_that_fits(forms: list[Form], plain: Operation) -> Operation:
    told: set[str] = set()

    def run(*arguments: Any, **options: Any) -> Any:
        for form in forms:
            if not form.covers(*arguments, **options):
                continue
            why = form.limit(*arguments, **options)
            if why is None:
                return form.run(*arguments, **options)
            _tell_once(told, f"{form.operation} runs on a lower tier than {form.title}: {why}")
        return plain(*arguments, **options)

    return run


def _tell_once(told: set[str], text: str) -> None:
    if text not in told:
        told.add(text)
        print(f"fourfold: {text}", file=sys.stderr, flush=True)
