"""What a token costs, and the shares and ratios that are drawn from the samples."""

from __future__ import annotations

import dataclasses

from fourfold.bench.engines import Cell, Sample
from fourfold.bench.report import limits, rows, table
from fourfold.bench.run import Outcome, Settings
from fourfold.bench.traffic import decode_bytes, kv_read_bytes, prefill_operations
from fourfold.config import ModelConfig
from fourfold.weights.inspect import inspect_checkpoint

SETTINGS = Settings(contexts=(100,), threads=(1,), prefill=(50,), decode=2, repetitions=2)
CELL = Cell(1, 100, 50, 2)


def test_a_token_reads_weights_window_and_entries(tiny_folder):
    # Layers: two of the window alone, one CSA (ratio 4, 8 entries chosen), one HCA (ratio 128); window 16.
    config, facts = ModelConfig.from_file(tiny_folder), inspect_checkpoint(tiny_folder)
    assert config.layer_kinds.count("csa") == config.layer_kinds.count("hca") == 1
    assert kv_read_bytes(config, 0, "exact") == 4 * 4 * 64
    window, chosen, keys, hca = 4 * 16 * 64, 8 * 64, 75 * 32, 2 * 64
    assert kv_read_bytes(config, 300, "exact") == 4 * (window + chosen + keys + hca)
    assert kv_read_bytes(config, 300, "deployed") == kv_read_bytes(config, 300, "fast")
    assert kv_read_bytes(config, 300, "fast") * 2 == kv_read_bytes(config, 300, "exact")
    assert decode_bytes(facts, config, 0, "exact") == facts.bytes_per_token + 4 * 4 * 64
    assert prefill_operations(facts, config) == 2 * (facts.parameters_active - 400 * 128)


def outcome() -> Outcome:
    found = Outcome()
    found.samples["fourfold", CELL] = [Sample(100.0, 20.0, 3.0), Sample(200.0, 10.0)]
    found.samples["peer", CELL] = [Sample(None, 4.0), Sample(None, 5.0)]
    found.bandwidth[CELL] = [1e9, 2e9, 1.5e9, 1e9]
    found.peaks[1] = {"f32 avx512": 3e9, "f32 torch": 2e9, "bf16 amx": 9e9, "bf16 torch": 4e9}
    return found


def test_rows_have_shares_and_ratios(tiny_folder):
    config, facts = ModelConfig.from_file(tiny_folder), inspect_checkpoint(tiny_folder)
    own, peer = rows(outcome(), SETTINGS, facts, config, "fast")
    assert own["prefill"] == {"best": 200.0, "median": 150.0, "samples": [100.0, 200.0]}
    assert own["first_token_seconds"] == 3.0 + 50 / 200.0
    assert own["bandwidth_share"] == 20.0 * decode_bytes(facts, config, 100, "fast") / 2e9
    multiplied = 200.0 * prefill_operations(facts, config)
    assert (own["compute_share"], own["library_share"]) == (multiplied / 9e9, multiplied / 4e9)
    assert (peer["prefill"], peer["first_token_seconds"]) == (None, None)
    assert peer["times"] == {"prefill": None, "decode": 4.0}
    exact = rows(outcome(), SETTINGS, facts, config, "exact")[0]
    assert exact["compute_type"] == "f32" and exact["compute_share"] == multiplied / 3e9
    (limit,) = limits(outcome())
    assert limit["read_bytes_per_second"]["best"] == 2e9


def test_a_prompt_that_nothing_follows_has_no_share_of_the_bandwidth(tiny_folder):
    config, facts = ModelConfig.from_file(tiny_folder), inspect_checkpoint(tiny_folder)
    found, cell = outcome(), Cell(1, 0, 90, 0)
    found.samples["fourfold", cell], found.bandwidth[cell] = [Sample(150.0, None)], [1e9]
    settings = dataclasses.replace(SETTINGS, prefill=(50, 90))
    _, _, row = rows(found, settings, facts, config, "fast")
    assert (row["prompt"], row["context"], row["decode"], row["bandwidth_share"]) == (90, 0, None, None)
    assert row["prefill"]["best"] == 150.0 and row["first_token_seconds"] == 90 / 150.0
    assert [limit["prompt"] for limit in limits(found)] == [50, 90]


def test_table_says_what_was_not_measured(tiny_folder):
    config, facts = ModelConfig.from_file(tiny_folder), inspect_checkpoint(tiny_folder)
    columns, lines = table({"results": rows(outcome(), SETTINGS, facts, config, "fast")})
    assert {len(line) for line in lines} == {len(columns)}
    assert lines[1][:5] == ("peer", "1", "100", "50", "-") and lines[1][-2:] == ("-", "4.00×")
