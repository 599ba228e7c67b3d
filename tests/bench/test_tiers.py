"""bench/tiers.py: the limits of each share, and the plot."""

from __future__ import annotations

import pytest

from bench.tiers import add_limits, plot


@pytest.fixture
def rows():
    """A disk that allows 4 and 16 tokens a second, and 10 with everything in RAM."""
    streamed = {"disk_bytes_per_second": 800.0, "bytes_read": 2000, "stall_seconds": 1.0}
    return [
        {"share": 25, "decode_tokens_per_second": 3.0, **streamed},
        {"share": 75, "decode_tokens_per_second": 8.0, **streamed, "bytes_read": 500},
        {"share": 100, "decode_tokens_per_second": 10.0},
    ]


def test_the_limit_is_the_disk_or_the_resident_model(rows):
    add_limits(rows, tokens=10)
    assert [row.get("limit_tokens_per_second") for row in rows] == [4.0, 10.0, None]
    assert [row.get("share_of_limit") for row in rows] == [0.75, 0.8, None]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_curve_is_drawn(rows, tmp_path, suffix):
    add_limits(rows, tokens=10)
    about = {"tokens": 10, "layers": 5, "experts": 320, "processor": "a processor", "threads": 2}
    document = {**about, "rows": rows, "disk_bytes_per_second": {"best": 800.0, "median": 700.0}}
    file = tmp_path / f"curve{suffix}"
    plot(document, file)
    assert file.stat().st_size > 5000
