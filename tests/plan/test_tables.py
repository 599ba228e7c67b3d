"""The tables that ship: every figure has its source, and a file of the user's is read as strictly."""

from __future__ import annotations

import datetime

import pytest

from fourfold.config import ModelConfig
from fourfold.errors import ConfigError
from fourfold.plan import efficiencies, find_model, hardware_names, listed_hardware
from fourfold.plan.cost import hosted
from fourfold.plan.tables import hosted_prices, reports
from fourfold.weights.synth import reduced

WANTED = {
    "epyc-9004", "epyc-9005", "xeon-4", "xeon-6", "kunpeng-920", "desktop-ddr5", "m3-ultra", "m4-max",
    "h100", "h200", "b200", "rtx-4090", "rtx-5090", "rtx-pro-6000", "mi300x",
    "ascend-310p", "ascend-910b", "ascend-910c", "ascend-950pr", "ascend-950dt",
}  # fmt: skip


@pytest.mark.parametrize("name", hardware_names())
def test_every_figure_has_a_source_and_a_day(name):
    hardware = listed_hardware(name)
    for key, figure in hardware.figures.items():
        assert figure.source.startswith("https://"), key
        assert figure.checked is not None or figure.uncertain, f"{name}.{key}: not read, so uncertain"
        assert figure.note or not figure.uncertain, f"{name}.{key}: uncertain, and does not say why"
    assert 16e9 < hardware.memory < 2e12
    assert 80e9 < hardware.bandwidth < 1e13
    assert 1e12 < hardware.bf16_peak < 1e16
    assert (hardware.cores is not None) == (hardware.kind == "cpu")


def test_the_list_has_what_people_own():
    assert set(hardware_names()) >= WANTED


def test_efficiencies_are_shares_or_times_with_a_source():
    table = efficiencies()
    assert all(entry.source and entry.what and entry.value > 0 for entry in table.values())
    larger = ("reserve_gib", "core_read", "stream_passes")
    assert all(entry.value <= 1 for name, entry in table.items() if name not in larger)


def test_prices_have_a_day_and_a_source():
    for price in hosted_prices():
        assert price.source.startswith("https://")
        assert 0 < price.cached_input < price.input < price.output
        assert price.until is None or price.since is None or price.since < price.until
    assert {price.model for price in hosted_prices()} == {"flash", "pro"}


def test_reports_of_others_name_known_hardware_and_a_source():
    for report in reports():
        assert set(report.hardware) <= set(hardware_names())
        assert report.source.startswith("https://") and report.model in ("flash", "pro")


def test_hosted_prices_of_a_day():
    flash, pro = find_model("flash").config, find_model("pro").config

    def on(config: ModelConfig, *day: int) -> list[tuple[str, str, float]]:
        return [(price.served, price.tariff, price.output) for price in hosted(config, datetime.date(*day))]

    assert on(pro, 2026, 11, 22) == [
        ("DeepSeek-V4-Pro-0813", "off-peak", 1.98),
        ("DeepSeek-V4-Pro-0813", "peak", 3.96),
    ]
    assert {served for served, _, _ in on(flash, 2026, 11, 22)} == {
        "DeepSeek-V4-Flash-0731",
        "DeepSeek-V4.1-Flash",
    }
    assert on(reduced(flash, layers=4), 2026, 11, 22) == []


def test_a_file_of_the_same_form(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[hardware.mine]\nmemory_gb = 64\nbandwidth_gb_s = 70.5\nbf16_tflops = 2\n")
    hardware = listed_hardware(str(file))
    assert (hardware.name, hardware.kind, hardware.memory) == ("mine", "cpu", 64_000_000_000)
    assert hardware.figures["bandwidth_gb_s"].source == str(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[hardware.a]\nmemory_gb = 64\n", "hardware.a lacks bandwidth_gb_s, bf16_tflops; add it"),
        (
            "[hardware.a]\nspeed = 64\n",
            "hardware.a has speed; allowed: title, kind, decodes, local_heads, memory_gb",
        ),
        (
            "[hardware.a]\nmemory_gb = 1\nbandwidth_gb_s = 1\nbf16_tflops = 1\ndecodes = 'fp8'\n",
            "decodes is 'fp8'; allowed: a list of str",
        ),
        ("[hardware.a]\nkind = 'toaster'\n", "kind is 'toaster'.*allowed: cpu, unified, gpu, npu"),
        (
            "[hardware.a]\nmemory_gb = -1\nbandwidth_gb_s = 1\nbf16_tflops = 1\n",
            "memory_gb is -1; allowed: a number above 0",
        ),
        (
            "[hardware.a]\nmemory_gb = {value=1,source='x'}\nbandwidth_gb_s = 1\nbf16_tflops = 1\n",
            "source is 'x'; allowed: none",
        ),
        ("", "describes 0 devices; allowed: one"),
        ("memory_gb = ", "not a hardware file in TOML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        listed_hardware(str(tmp_path / "mine.toml"))


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ConfigError, match=r"hardware is 'abacus'; allowed: here, .*epyc-9004"):
        listed_hardware("abacus")
