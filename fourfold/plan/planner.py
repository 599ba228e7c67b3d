"""`plan`: a model's demand on a machine, as placement, speeds and costs."""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourfold.config import ModelConfig
from fourfold.errors import DownloadError, RequestError
from fourfold.plan.cost import Cost, Tariff, cost, family, hosted
from fourfold.plan.demand import Demand
from fourfold.plan.placement import Machine, Placement, place
from fourfold.plan.speed import Roofline, Speed
from fourfold.plan.tables import Efficiency, Hardware, HostedPrice, Report, efficiencies, reports
from fourfold.weights.synth import PRESETS, preset

_PUBLISHED = re.compile(r"deepseek-ai/DeepSeek-V4-(Flash|Pro)(-Base)?")
CHUNK = 512
"""Tokens of a prompt that a model gets at once."""
CONVERTED = {"w8a8": "int8", "w4a8": "int4"}
"""The routed experts' format in the recipes that `find_model` knows; it says what the rest is stored as."""
_LONGEST_CHUNKED = 1 << 16  # chunks of a prompt, at most: beyond it planning itself would take seconds


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `plan` predicts.

    decode: by number of sequences decoded together (1, and the concurrency asked for), one Speed each, two
    where experts stream from disk (uniform and skewed routing).  prefill: of one prompt; its seconds are the
    time to the first token.  All three, costs too, are empty where the model does not fit.
    kv_bytes: of one sequence.  hosted: list prices of DeepSeek's API, if it offers the model.
    reports: what others published for this model on this hardware.
    on_each: where several devices share the model, what one of them has, in words.
    assumptions: what the prediction rests on, in words.
    """

    model: str
    demand: Demand
    machine: Machine
    context: int
    concurrency: int
    prompt: int
    kv_bytes: int
    bytes_per_token: int
    placement: Placement
    decode: dict[int, list[Speed]]
    prefill: Speed | None
    costs: list[Cost]
    hosted: list[HostedPrice]
    reports: list[Report]
    on_each: str | None
    assumptions: list[str]

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON object; keys are the fields, the model's config left out."""
        data = dataclasses.asdict(self)
        del data["demand"]["config"]
        return _plain(data)


def plan(
    config: ModelConfig | Demand,
    machine: Machine | Hardware,
    *,
    model: str = "model",
    context: int = 8192,
    concurrency: int = 1,
    prompt: int = 2048,
    chunk: int = CHUNK,
    tariff: Tariff | None = None,
    efficiency: dict[str, Efficiency] | None = None,
) -> Plan:
    """Predict how `config` runs on `machine`, from sizes and rates alone.

    config: a model of published formats, or the Demand of stored weights.  context: tokens that each of
    `concurrency` sequences has when it is decoded.  prompt: tokens prefilled, in chunks of `chunk`.
    efficiency: in place of the package's table.  RequestError: a number out of its range.
    """
    demand = config if isinstance(config, Demand) else Demand.of(config)
    machine = Machine(device=machine) if isinstance(machine, Hardware) else machine
    check(demand.config, context=context, concurrency=concurrency, prompt=prompt, chunk=chunk)
    table = efficiencies() if efficiency is None else efficiency
    placement = place(demand, machine, context=context, concurrency=concurrency, efficiency=table)
    decode: dict[int, list[Speed]] = {}
    prefill: Speed | None = None
    costs: list[Cost] = []
    listed = machine.device.figures.get("power_w")
    an_hour = (tariff or Tariff()).an_hour(None if listed is None else machine.devices * listed.value)
    if placement.fits:
        roofline = Roofline(demand, machine, placement, table)
        decode = {count: roofline.decode(context, count) for count in dict.fromkeys((1, concurrency))}
        prefill = roofline.prefill(prompt, chunk)
        if an_hour is not None and tariff is not None:
            # Of two routings the first, uniform one: costs are not to rest on a hope.
            costs = [
                cost(an_hour, tariff.currency, count, prefill.tokens_per_second, of[0].tokens_per_second)
                for count, of in decode.items()
            ]
    return Plan(
        model=model,
        demand=demand,
        machine=machine,
        context=context,
        concurrency=concurrency,
        prompt=prompt,
        kv_bytes=demand.kv_size(context),
        bytes_per_token=sum(demand.read_by_format.values()),
        placement=placement,
        decode=decode,
        prefill=prefill,
        costs=costs,
        hosted=hosted(demand.config, datetime.datetime.now(tz=datetime.UTC).date()),
        reports=[
            report
            for report in reports()
            if report.model == family(demand.config) and machine.device.name in report.hardware
        ],
        on_each=_on_each(demand, machine),
        assumptions=[
            *_assumptions(machine, placement, table, tariff, demand.kv),
            *_mismatches(demand, machine),
        ],
    )


def check(config: ModelConfig, *, context: int, concurrency: int, prompt: int, chunk: int = CHUNK) -> None:
    """RequestError: a number that `plan` refuses; to be asked before a machine is measured."""
    longest = config.max_position_embeddings
    _check("context", context, longest)
    _check("prompt", prompt, longest)
    _check("concurrency", concurrency, 1 << 20)
    _check("chunk", chunk, longest)
    if prompt > chunk * _LONGEST_CHUNKED:
        raise RequestError(
            f"prompt is {prompt:,}, chunk {chunk}; allowed: {_LONGEST_CHUNKED:,} chunks at most"
        )


def find_model(name: str, converted: str | None = None) -> Demand:
    """The Demand of a model, without downloading anything.

    converted: "w8a8" or "w4a8", as `fourfold export --format` would store it; None as it is.
    name: flash, pro, flash-base, pro-base; a checkpoint folder or config.json; the repository id of a
    published model, or of one whose config.json is in the hub's cache.  DownloadError: none of these.
    """
    path = Path(name).expanduser()
    if converted is None and name not in PRESETS and path.is_dir():
        return Demand.of(ModelConfig.from_file(path), path)
    config = _find_config(name)
    if converted is not None:
        config = dataclasses.replace(config, expert_dtype=CONVERTED[converted])
    return Demand.of(config)


def _find_config(name: str) -> ModelConfig:
    if name in PRESETS:
        return preset(name)
    path = Path(name).expanduser()
    if path.exists():
        return ModelConfig.from_file(path)
    from huggingface_hub import try_to_load_from_cache

    if name.count("/") == 1 and isinstance(cached := try_to_load_from_cache(name, "config.json"), str):
        return ModelConfig.from_file(cached)
    if match := _PUBLISHED.fullmatch(name):
        return preset(f"{match[1]}{match[2] or ''}".lower())
    raise DownloadError(
        f"{name}: no such folder or config.json, and nothing is downloaded to plan; allowed: "
        f"{', '.join(PRESETS)}, deepseek-ai/DeepSeek-V4-Flash, a path, or a repository in the hub's cache"
    )


def _check(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise RequestError(f"{name} is {value:,}; allowed: 1 to {most:,}")


def _assumptions(
    machine: Machine, placement: Placement, table: dict[str, Efficiency], tariff: Tariff | None, kv: str
) -> list[str]:
    used = {"decode_read", "prefill_compute", "attention_compute", "stream_passes"}
    used |= {"layer_seconds", "reserve_gib"}
    used |= {"core_read"} if any(part.cores for part in _parts(machine)) else set()
    used |= {"unshared_seconds"} if (machine.device.cores or 1) > 1 else set()
    used |= {"listed_read"} if not all(part.measured for part in _parts(machine)) else set()
    used |= {"several_devices"} if machine.devices > 1 else set()
    used |= {"disk_read"} if machine.disk_rate is not None else set()
    lines = [
        f"{entry.what}: {entry.value:g} ({entry.source})" for name, entry in table.items() if name in used
    ]
    stored = "bf16" if kv == "bf16" else "FP8 and FP4 as published"
    lines.append(
        f"KV cache in {stored}; each token chooses its experts evenly and on its own; no drafting by MTP"
    )
    if machine.host is not None and placement.device_hits < 1:
        lines.append(
            f"the device holds {placement.device_hits:.0%} of the routed experts and serves as much of their "
            "uses; --expert-counts places the most used ones there, which is more where uses are uneven"
        )
    if placement.cached_share < 1:
        lines.append(
            "disk reads overlap with all else; uniform: the cache serves its share of the experts; "
            "skewed: the square root of it, a guess"
        )
    if tariff is not None and (tariff.price is not None or tariff.electricity is not None):
        lines.append("busy all day; input and output billed by the time that each takes")
    if tariff is not None and tariff.electricity is not None and tariff.power is None:
        lines.append("power: the listed figure of the devices alone, without their host")
    for part in _parts(machine):
        if part.kind == "cpu" and part.cores is None:
            lines.append(f"{part.name}: cores are not given, so that memory alone limits decoding")
        lines += [f"uncertain, {part.name} {line}" for line in part.uncertain()]
    return lines


def _mismatches(demand: Demand, machine: Machine) -> list[str]:
    """What the device's own operators do not do with this model, in words."""
    device, lines = machine.device, []
    stored = {name.split()[-1] for name in demand.read_by_format}
    if decoded := [name for name in device.decodes if name in stored]:
        lines.append(
            f"{device.name} has no products of {' or '.join(decoded)}: such weights are decoded before each, "
            "which the speeds leave out; --format w8a8 or w4a8 predicts them converted by fourfold export"
        )
    if machine.devices > 1 and sum(_shares(demand, machine)) > device.memory:
        lines.append(
            "all but the experts, whole on every device, is too much: that has to be cut over the "
            f"{machine.devices}, too"
        )
    heads = demand.config.num_attention_heads
    if device.local_heads and (heads % machine.devices or heads // machine.devices not in device.local_heads):
        allowed = " or ".join(map(str, device.local_heads))
        lines.append(
            f"{device.name}'s attention operators take {allowed} heads a device: {heads} cannot be cut into "
            f"{machine.devices}, attention has to be whole on each device"
        )
    return lines


def _on_each(demand: Demand, machine: Machine) -> str | None:
    """32 of 256 experts a layer, 33.0 GiB; of 64 heads 8; all else at most 10.0 GiB"""
    config, devices = demand.config, machine.devices
    if devices == 1:
        return None
    experts, rest = (f"{size / 2**30:.1f} GiB" for size in _shares(demand, machine))
    count = math.ceil(config.n_routed_experts / devices)
    # Heads are cut with their output groups, and not beyond what the device's operators take.
    heads = config.num_attention_heads // math.gcd(config.o_groups, devices)
    if machine.device.local_heads and heads not in machine.device.local_heads:
        heads = config.num_attention_heads
    return (
        f"{count} of {config.n_routed_experts} experts a layer, {experts}; "
        f"{heads} of {config.num_attention_heads} heads; all else whole, up to {rest}"
    )


def _shares(demand: Demand, machine: Machine) -> tuple[float, int]:
    """Bytes that a device has of the routed experts, and of all else where it is not cut."""
    return (demand.expert_bytes + demand.mtp_expert_bytes) / machine.devices, demand.resident_bytes


def _parts(machine: Machine) -> list[Hardware]:
    return [hardware for hardware in (machine.device, machine.host) if hardware is not None]


def _plain(value: Any) -> Any:
    """Dates as text, keys as text, tuples as lists."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.isoformat() if isinstance(value, datetime.date) else value
