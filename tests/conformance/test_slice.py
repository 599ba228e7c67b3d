"""Two layers of Flash, here in small."""

from __future__ import annotations

import shutil
from collections import namedtuple
from typing import Any

import pytest

from fourfold.conformance import slice as slices
from fourfold.conformance.report import Check, NotExercised

SMALL: dict[str, Any] = {
    "vocab_size": 256, "num_nextn_predict_layers": 0, "num_attention_heads": 4, "head_dim": 64, "o_groups": 2,
    "qk_rope_head_dim": 32, "q_lora_rank": 64, "o_lora_rank": 64, "moe_intermediate_size": 64,
    "index_n_heads": 4, "index_head_dim": 32, "index_topk": 8,
}  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "_SHAPE", {"layers": 2, "experts": 8, "hidden": 128, "overrides": SMALL})


@pytest.mark.usefixtures("small")
def test_prefill_and_steps_are_compared_and_timed() -> None:
    found = list(slices.check_slice("cpu"))
    assert {(check.group, check.name) for check in found if isinstance(check, Check)} == {
        ("slice", "exact"),
        ("slice", "deployed"),
    }
    assert len(found) == 12 and all(isinstance(c, Check) and c.passed and (c.seconds or 0) > 0 for c in found)


@pytest.mark.usefixtures("small")
def test_a_device_that_fails_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("EZ9999: inner error")

    monkeypatch.setattr(slices, "_run", fail)
    found = list(slices.check_slice("cpu"))
    assert [(c.error, c.passed) for c in found if isinstance(c, Check)] == [
        ("EZ9999: inner error", False)
    ] * 2


def test_without_room_it_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1))
    (found,) = slices.check_slice("cpu")
    assert isinstance(found, NotExercised) and "GiB of disk" in found.why
