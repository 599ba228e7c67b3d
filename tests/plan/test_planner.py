"""Placement, speeds and costs, against the arithmetic done by hand."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import pytest

from fourfold.errors import RequestError
from fourfold.plan import (
    Demand,
    Figure,
    Hardware,
    Machine,
    Plan,
    Tariff,
    efficiencies,
    find_model,
    listed_hardware,
    plan,
)

NOTHING = ("layer_seconds", "reserve_gib", "stream_passes", "unshared_seconds")
IDEAL = {
    name: dataclasses.replace(entry, value=0.0 if name in NOTHING else 1.0)
    for name, entry in efficiencies().items()
}


@functools.cache
def flash() -> Demand:
    return find_model("flash")


def box(
    memory_gb: float, gb_s: float, tflops: float = 0.463, kind: str = "cpu", cores: float | None = None
) -> Hardware:
    values = {"memory_gb": memory_gb, "bandwidth_gb_s": gb_s, "bf16_tflops": tflops}
    values |= {} if cores is None else {"cores": cores}
    figures = {name: Figure(value=value, source="the test") for name, value in values.items()}
    return Hardware(name="box", title="box", kind=kind, figures=figures, measured=True)


def placed(found: Plan) -> dict[str, list[str]]:
    places: dict[str, list[str]] = {}
    for part in found.placement.parts:
        places.setdefault(str(part.place), []).append(part.part.split(",")[0])
    return places


def test_decode_is_bandwidth_over_bytes():
    found = plan(flash(), box(400, 35), context=1, efficiency=IDEAL)
    speed = found.decode[1][0]
    assert round(speed.tokens_per_second, 1) == 3.1  # 35 GB/s over 11.2 GB
    assert speed.limit == "memory"
    assert speed.bytes_read == pytest.approx(found.bytes_per_token + flash().kv_read(1))


def test_a_batch_reads_dense_weights_once_and_the_experts_it_meets():
    found = plan(flash(), box(400, 100, tflops=1e3), context=8192, concurrency=16, efficiency=IDEAL)
    one, many = found.decode[1][0], found.decode[16][0]
    met = 1 - (1 - 6 / 256) ** 16
    read = flash().dense_bytes + flash().expert_bytes * met + 16 * flash().kv_read(8192)
    assert many.bytes_read == pytest.approx(read)
    assert many.tokens_per_second == pytest.approx(16 * 100e9 / read)
    assert one.tokens_per_second < many.tokens_per_second < 16 * one.tokens_per_second
    assert plan(flash(), box(400, 100), concurrency=16, efficiency=IDEAL).decode[16][0].limit == "compute"


def test_prefill_is_limited_by_the_peak_and_its_time_is_the_first_token():
    found = plan(flash(), box(400, 1000), prompt=512, chunk=512, efficiency=IDEAL)
    assert found.prefill is not None
    # 2 x (13.27 - 0.53) GFLOP a token, and attention: a little below 0.463 TFLOPS over that.
    assert 16 < found.prefill.tokens_per_second < 18.2
    assert found.prefill.limit == "compute"
    assert found.prefill.seconds == pytest.approx(512 / found.prefill.tokens_per_second)


@pytest.mark.parametrize(
    ("ram", "disk", "bandwidth", "uniform", "skewed"),
    [(16, 1.5, 35, 0.45, 0.53), (24, 1.5, 35, 0.48, 0.62), (64, 7, 70, 3.17, 5.07), (128, 7, 75, 6.69, 6.69)],
)
def test_streaming_experts_from_disk(ram, disk, bandwidth, uniform, skewed):
    machine = Machine(device=box(ram, bandwidth), ram=int((ram - 2) * 1e9), disk_rate=disk * 1e9)
    found = plan(flash(), machine, context=1, efficiency=IDEAL)
    first, second = found.decode[1]
    assert (first.routing, second.routing) == ("uniform", "skewed")
    assert round(first.tokens_per_second, 2) == uniform
    assert round(second.tokens_per_second, 2) == skewed
    assert second.hit_rate == math.sqrt(first.hit_rate)
    assert placed(found)["disk"] == ["routed experts", "MTP experts"]
    assert sum(part.bytes for part in found.placement.parts) == flash().total_bytes + flash().kv_size(1)


def test_listed_hardware_is_taken_at_less_than_its_peak():
    table = efficiencies()
    listed = dataclasses.replace(box(400, 100), measured=False)
    rates = [
        plan(flash(), device, efficiency={**IDEAL, "listed_read": table["listed_read"]}).decode[1][0]
        for device in (box(400, 100), listed)
    ]
    assert rates[1].tokens_per_second == pytest.approx(
        rates[0].tokens_per_second * table["listed_read"].value
    )


def test_few_cores_cannot_unpack_what_memory_gives():
    table = {**IDEAL, "core_read": dataclasses.replace(IDEAL["core_read"], value=10.0)}
    free, few, many = (
        plan(flash(), box(400, 100, tflops=1e3, cores=cores), context=1, efficiency=table)
        for cores in (None, 4, 96)
    )
    read = few.bytes_per_token + flash().kv_read(1)
    computes = (flash().product_operations(head=True) + flash().attention_operations(1)) / 1e15
    assert few.decode[1][0].seconds == pytest.approx(read / 40e9 + computes)
    assert few.decode[1][0].limit == "compute" and many.decode[1][0].limit == "memory"
    assert many.decode[1][0] == free.decode[1][0]
    assert any(line.startswith("box: cores are not given") for line in free.assumptions)
    assert not any("cores are not given" in line for line in few.assumptions)


def test_streams_between_the_products_are_read_and_written():
    table = {**IDEAL, "stream_passes": dataclasses.replace(IDEAL["stream_passes"], value=10.0)}
    plain, found = (plan(flash(), box(400, 1, tflops=1e3), context=1, efficiency=t) for t in (IDEAL, table))
    moved = 10 * 43 * 4 * 4096 * 4
    assert found.decode[1][0].seconds - plain.decode[1][0].seconds == pytest.approx(moved / 1e9)
    assert found.decode[1][0].bytes_read == plain.decode[1][0].bytes_read


def test_several_cores_do_not_share_all_of_a_layer():
    table = {**IDEAL, "unshared_seconds": dataclasses.replace(IDEAL["unshared_seconds"], value=1e-3)}
    for cores, more in ((None, 0.0), (1, 0.0), (2, 0.043)):
        machine = box(400, 1e6, 1e6, cores=cores)
        ideal, found = (plan(flash(), machine, context=1, efficiency=t) for t in (IDEAL, table))
        assert found.decode[1][0].seconds - ideal.decode[1][0].seconds == pytest.approx(more)
        assert any("do not share" in line for line in found.assumptions) == (more > 0)


def test_every_layer_of_every_call_costs_its_fixed_time():
    table = {**IDEAL, "layer_seconds": dataclasses.replace(IDEAL["layer_seconds"], value=1e-3)}
    ideal, found = (plan(flash(), box(400, 1e6, 1e6), prompt=1024, efficiency=t) for t in (IDEAL, table))
    assert found.decode[1][0].seconds - ideal.decode[1][0].seconds == pytest.approx(0.043)
    assert found.decode[1][0].limit == "fixed time"
    assert found.prefill is not None and ideal.prefill is not None
    assert found.prefill.seconds - ideal.prefill.seconds == pytest.approx(2 * 0.043)


def test_tiers_of_an_accelerator():
    gpu, cpu = box(80, 3000, 900, kind="gpu"), box(512, 400, 900)
    both = plan(flash(), Machine(device=gpu, host=cpu), efficiency=IDEAL)
    assert placed(both)["device"] == ["dense", "KV cache", "routed experts"]
    assert placed(both)["RAM"] == ["routed experts", "MTP experts"]
    share = both.placement.expert_share["device"]
    experts = flash().expert_read(1)
    seconds = (flash().dense_bytes + flash().kv_read(8192) + experts * share) / 3000e9
    assert both.decode[1][0].seconds == pytest.approx(seconds + experts * (1 - share) / 400e9, rel=1e-3)
    assert any(
        f"holds {share:.0%} of the routed experts and serves as much" in line for line in both.assumptions
    )
    whole = plan(flash(), Machine(device=gpu, devices=3), efficiency=IDEAL)
    assert set(placed(whole)) == {"device"} and not any("serves" in line for line in whole.assumptions)
    assert whole.decode[1][0].tokens_per_second > both.decode[1][0].tokens_per_second


def test_what_does_not_fit_says_by_how_much_and_what_to_do():
    found = plan(flash(), Machine(device=box(80, 3000, kind="gpu")), efficiency=IDEAL)
    assert not found.placement.fits
    assert found.placement.missing == flash().total_bytes + flash().kv_size(8192) - 80_000_000_000
    assert placed(found)["None"] == ["experts without a place"]
    assert (found.decode, found.prefill, found.costs) == ({}, None, [])
    for way in ("--devices 2 or more", "--host NAME", "--disk PATH or RATE"):
        assert way in found.placement.advice
    narrow = plan(flash(), box(170, 50), context=1 << 20, concurrency=4, efficiency=IDEAL)
    assert not narrow.placement.fits
    assert "a shorter --context, fewer --concurrency" in narrow.placement.advice
    assert "--devices" not in narrow.placement.advice
    most = narrow.placement.most_sequences
    assert plan(flash(), box(170, 50), context=1 << 20, concurrency=most, efficiency=IDEAL).placement.fits


def test_costs_of_a_million_tokens():
    tariff = Tariff(power=500, electricity=0.3, price=1.85, currency="EUR")
    found = plan(flash(), box(400, 100), concurrency=8, tariff=tariff, efficiency=IDEAL)
    one, eight = found.costs
    assert (one.an_hour, one.currency, one.concurrency, eight.concurrency) == (2.0, "EUR", 1, 8)
    assert one.output == pytest.approx(2.0 / 3600 * 1e6 / found.decode[1][0].tokens_per_second)
    assert found.prefill is not None
    assert one.input == eight.input == pytest.approx(2.0 / 3600 * 1e6 / found.prefill.tokens_per_second)
    assert plan(flash(), box(400, 100)).costs == []
    listed = plan(flash(), listed_hardware("epyc-9004"), tariff=Tariff(electricity=0.25))
    assert listed.costs[0].an_hour == pytest.approx(0.09)
    assert any("listed figure" in line for line in listed.assumptions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "context is 0; allowed: 1 to 1,048,576"),
        ({"context": 1 << 21}, "context is 2,097,152; allowed: 1 to 1,048,576"),
        ({"prompt": 0}, "prompt is 0"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"tariff": Tariff(power=5.0)}, "add --electricity"),
        ({"tariff": Tariff(electricity=5.0)}, "add --power"),
    ],
)
def test_wrong_requests(options, message):
    with pytest.raises(RequestError, match=message):
        plan(flash(), box(400, 100), **options)


def test_wrong_machines():
    with pytest.raises(RequestError, match="devices is 0"):
        Machine(device=box(1, 1), devices=0)
    with pytest.raises(RequestError, match="a host of kind cpu or unified beside a gpu or npu"):
        Machine(device=box(1, 1), host=box(1, 1))
    with pytest.raises(RequestError, match="price is nan"):
        Tariff(price=math.nan)


def test_what_one_of_several_devices_has():
    made = plan(find_model("flash", "w8a8"), Machine(device=listed_hardware("ascend-910b"), devices=8))
    assert (
        made.on_each == "32 of 256 experts a layer, 33.0 GiB; 8 of 64 heads; all else whole, up to 10.0 GiB"
    )
    assert not any("too much" in line for line in made.assumptions)
    tight = plan(find_model("pro", "w4a8"), Machine(device=listed_hardware("ascend-910b"), devices=16))
    assert any("has to be cut over the 16" in line for line in tight.assumptions)
    whole = plan(find_model("pro"), Machine(device=listed_hardware("ascend-950dt"), devices=16))
    assert whole.on_each is not None and "128 of 128 heads" in whole.on_each
    assert plan(find_model("flash"), listed_hardware("ascend-950dt")).on_each is None


def test_ascend_says_what_its_formats_and_heads_do_not_suit():
    old = Machine(device=listed_hardware("ascend-910b"), devices=8)
    published, converted = (plan(find_model("flash", to), old) for to in (None, "w8a8"))
    assert any("no products of fp8 or fp4" in line for line in published.assumptions)
    assert not any("no products" in line for line in converted.assumptions)
    assert converted.demand.total_bytes / published.demand.total_bytes == pytest.approx(1.84, abs=0.01)
    assert converted.reports[0].value == "about 36 tokens/s"
    new = listed_hardware("ascend-950dt")
    one, two = (plan(find_model("flash"), Machine(device=new, devices=count)) for count in (1, 2))
    assert not any("heads" in line for line in one.assumptions)
    assert any("64 cannot be cut into 2" in line for line in two.assumptions)


def test_the_document_is_json_and_complete():
    found = plan(flash(), listed_hardware("h200"), tariff=Tariff(price=3.0), model="flash")
    document = found.to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["placement"]["fits"] is False
    fields = {field.name for field in dataclasses.fields(Plan)}
    assert document.keys() == fields
    assert document["machine"]["device"]["figures"]["memory_gb"]["checked"] == "2026-11-22"
    assert any("0.85" in line for line in document["assumptions"])
