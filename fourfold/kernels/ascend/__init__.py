"""Huawei Ascend NPUs, torch's device type `npu`: plain aten operators, and the vendor's where they fit.

`bring()` imports torch_npu and registers, for every operation of the contract, the best form that this
machine has (forms.py).  docs/ascend.md says what has run where.

FOURFOLD_ASCEND_TIER      T0, T1 or T2: use no higher tier; the first thing to try when a number looks wrong
FOURFOLD_ASCEND_PACKAGES  modules that register operators of T2 when they are imported
FOURFOLD_ASCEND_GRAPHS    0: no step is captured as a graph
"""

from __future__ import annotations

import os

from fourfold import kernels
from fourfold.errors import KernelError
from fourfold.kernels import reference
from fourfold.kernels.ascend import aten, device, int4, packages, products, public, published, shared_kv
from fourfold.kernels.ascend.forms import TIERS, choose


def bring() -> None:
    """Register the kernels for `npu`.  KernelError: torch_npu, CANN or the device is missing."""
    device.bring_torch_npu()
    device.bring_packages()
    device.settle()
    whole = [name for name in kernels.OPERATIONS if name not in kernels.COMPOSED]
    plain = {name: getattr(reference, name) for name in whole} | aten.OWN
    forms = (*public.FORMS, *products.FORMS, *int4.FORMS, *published.FORMS, *packages.FORMS, *shared_kv.FORMS)
    operations, notes = choose(forms, plain, device.current_generation(), _highest_tier())
    kernels.register(
        "npu", operations, notes, plain, record=device.record if device.graphs_wanted() else None
    )


def _highest_tier() -> str:
    wanted = os.environ.get("FOURFOLD_ASCEND_TIER", TIERS[-1])
    if wanted not in TIERS:
        raise KernelError(f"FOURFOLD_ASCEND_TIER is {wanted!r}; allowed: {', '.join(TIERS)}")
    return wanted
