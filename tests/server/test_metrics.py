"""What the live view reads from /metrics."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from fourfold.model.experts import TierStats
from fourfold.server.metrics import Metrics
from fourfold.worker.wire import stats_of, stats_row


def values(metrics: Metrics) -> dict[str, float]:
    lines = [line for line in metrics.text().decode().splitlines() if not line.startswith("#")]
    return {line.split("{")[0].removeprefix("fourfold:"): float(line.split()[-1]) for line in lines}


def test_streamed_experts_are_told_where_there_are_any(serve):
    engine = serve().server.engine
    assert "experts" not in values(Metrics("m", engine))
    tiers = TierStats(
        30,
        100,
        on_device=20,
        hits=5,
        prefetched=4,
        misses=3,
        bytes_read=2_000,
        stall_seconds=0.5,
        device_hits=2,
    )
    row = stats_row(replace(engine.stats(), tiers=tiers))
    found = values(Metrics("m", SimpleNamespace(stats=lambda: stats_of(row), restarts=0)))
    expected = {
        "experts": 100,
        "expert_slots": 30,
        "experts_on_device": 20,
        "expert_hits_total": 7,
        "expert_prefetched_total": 4,
        "expert_misses_total": 3,
        "expert_bytes_read_total": 2_000,
        "expert_stall_seconds_total": 0.5,
    }
    assert expected.items() <= found.items()
    assert found["kv_cache_reusable_perc"] == found["kv_cache_usage_perc"] == 0
