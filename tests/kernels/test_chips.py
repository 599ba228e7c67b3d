"""Chips from other packages: found by their entry point, once, and broken ones are named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fourfold import kernels
from fourfold.errors import KernelError, RequestError
from fourfold.kernels import chips, reference, registry
from fourfold.kernels.formats import Rounding
from fourfold.loading import usable_device
from fourfold.model.numerics import numerics

REGISTERS = """
from fourfold import kernels
from fourfold.kernels import reference

calls = []

def hadamard(x):
    calls.append(x.shape)
    return reference.hadamard(x)

kernels.register("meta", {"hadamard": hadamard}, {"hadamard": "metachip: all of it"})
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """package(source, device, name): an installed package whose module brings kernels for `device`."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_TABLES", dict(registry._TABLES))
    monkeypatch.setattr(registry, "_NOTES", dict(registry._NOTES))
    monkeypatch.setattr(registry, "_FP4_INPUTS", dict(registry._FP4_INPUTS))
    monkeypatch.setattr(registry, "_SEARCHED", {"cpu"})

    def install(source: str, device: str = "meta", name: str = "metachip") -> None:
        monkeypatch.delitem(sys.modules, f"{name}_kernels", raising=False)
        (tmp_path / f"{name}_kernels.py").write_text(source)
        facts = tmp_path / f"{name}-1.2.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (facts / "entry_points.txt").write_text(f"[{chips.GROUP}]\n{device} = {name}_kernels\n")

    return install


def test_kernels_of_a_package_run_when_their_device_does(package):
    package(REGISTERS)
    assert "meta" not in registry._TABLES
    x = torch.empty(2, 4, device="meta")
    assert kernels.hadamard(x).shape == (2, 4)
    assert sys.modules["metachip_kernels"].calls == [(2, 4)]
    assert kernels.table("meta")["hadamard"] == "metachip: all of it"
    assert kernels.table("meta")["linear"] == "reference"


INT8_BESIDE_FP4 = """
from fourfold import kernels
from fourfold.kernels.formats import Rounding

kernels.register("meta", {}, {}, fp4_input=lambda: Rounding.INT8_GROUPS)
"""


@pytest.mark.parametrize(
    ("source", "want"), [(REGISTERS, Rounding.BF16), (INT8_BESIDE_FP4, Rounding.INT8_GROUPS)]
)
def test_a_package_says_which_inputs_suit_fp4(package, source, want):
    package(source)
    fp4 = torch.empty(8, 16, dtype=torch.int8, device="meta")
    scale = torch.empty(8, 1, dtype=torch.float8_e8m0fnu, device="meta")
    assert numerics("fast").input_of(fp4, scale) is want
    assert numerics("fast").input_of(fp4.float(), None) is Rounding.BF16
    assert numerics("deployed").input_of(fp4, scale) is Rounding.FP8
    assert numerics("exact").input_of(fp4, scale) is Rounding.NONE


def test_the_table_and_a_load_find_it_too(package):
    package(REGISTERS)
    assert usable_device("meta:0").type == "meta"
    assert "hadamard" in registry._NOTES["meta"]
    kernels.unregister("meta")
    assert set(kernels.table("meta").values()) == {"reference"}


def test_replaced_keeps_what_a_package_brought(package):
    package(REGISTERS)
    with kernels.replaced("meta", {}):
        assert registry._TABLES["meta"]["hadamard"] is reference.hadamard
    assert registry._TABLES["meta"]["hadamard"] is not reference.hadamard


def test_packages_for_other_devices_are_not_imported(package):
    package("raise RuntimeError('imported')", device="otherchip")
    package(REGISTERS.replace('"meta"', '"cpu"'), device="cpu", name="cpuchip")
    x = torch.ones(1, 2)
    assert kernels.hadamard(x).shape == (1, 2)
    assert kernels.hadamard(x.to("meta")).shape == (1, 2)
    assert "cpuchip_kernels" not in sys.modules


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_toolkit", r"metachip_kernels \(metachip 1\.2\).*ModuleNotFoundError.*uninstall"),
        ("x = 1", r"metachip 1\.2.*registered none.*register\('meta'"),
        (
            "from fourfold import kernels\nkernels.register('meta', {'no_such_op': print}, {})",
            "outside the contract: no_such_op",
        ),
    ],
)
def test_a_broken_package_is_named_every_time(package, source, message):
    package(source)
    for _ in range(2):
        with pytest.raises(KernelError, match=message):
            kernels.table("meta")
        sys.modules.pop("metachip_kernels", None)


def test_two_packages_for_one_device_are_named(package):
    package(REGISTERS)
    package(REGISTERS, name="rival")
    with pytest.raises(KernelError, match=r"metachip 1\.2.*rival 1\.2|rival 1\.2.*metachip 1\.2"):
        kernels.discover("meta")


def test_a_device_that_nothing_brings_is_refused_by_name():
    with pytest.raises(RequestError, match="device 'abacus' cannot be used here"):
        usable_device("abacus")
