"""The processor's name from what Linux says of it."""

from __future__ import annotations

import pytest

from fourfold.kernels.cpu.processor import _named, processor


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n\nprocessor\t: 1\nmodel name\t: Other\n",
            "Some CPU @ 2 GHz",
        ),
        ("CPU implementer\t: 0x48\nCPU variant\t: 0x1\nCPU part\t: 0xd01\n", "Arm 0x48 0xd01 0x1"),
        ("", ""),
    ],
)
def test_the_name_is_that_of_the_first(text, name):
    assert _named(text) == name


def test_this_machine_has_one():
    assert processor()
