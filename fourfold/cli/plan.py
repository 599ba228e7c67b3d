"""`fourfold plan`: does a model fit, how fast will it be, at what cost; before a download."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fourfold.cli import DONE, FAILED, console, options
from fourfold.cli.model import use_threads

if TYPE_CHECKING:
    from fourfold.plan import Hardware, LoraMemory, Plan, Speed

_PREFIXES = ("", "K", "M", "G", "T")
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?) ?([KMGT]?)(i?)B")


def _bytes(text: str) -> float | None:
    """64GiB (binary), 64GB (decimal); None if it is no size above 0."""
    match = _SIZE.fullmatch(text)
    if match is None:
        return None
    number, prefix, binary = match.groups()
    return float(number) * (1024 if binary else 1000) ** _PREFIXES.index(prefix) or None


def _size(text: str | None) -> str | None:
    if text is not None and _bytes(text) is None:
        raise typer.BadParameter(f"{text!r} is no size; allowed: a number above 0 and a unit, as 64GiB")
    return text


def _known(name: str | None) -> str | None:
    from fourfold.plan import hardware_names

    if name is None or name == "here" or name in hardware_names() or Path(name).is_file():
        return name
    raise typer.BadParameter(
        f"{name!r} is not known; allowed: here, {', '.join(hardware_names())}, or a TOML file of that form"
    )


def _disk(text: str | None) -> str | None:
    if text is None or Path(text).exists() or _bytes(text.removesuffix("/s")) is not None:
        return text
    raise typer.BadParameter(f"{text!r} is neither a rate, such as 7GB/s, nor a file or folder")


def plan(
    model: Annotated[
        str, typer.Argument(help="flash, pro, flash-base, pro-base, a folder, a config.json or a repo id.")
    ],
    hardware: Annotated[
        str,
        typer.Option(
            callback=_known, help="here (measured now), a listed name, or a TOML file of that form."
        ),
    ] = "here",
    devices: Annotated[int, typer.Option(help="So many of them, sharing the model.", min=1)] = 1,
    host: Annotated[
        str | None,
        typer.Option(callback=_known, help="Beside a gpu or npu: whose RAM may hold experts; as --hardware."),
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(
            callback=_size, help="RAM to use, as 64GiB.", show_default="what is free, less a reserve"
        ),
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option(
            callback=_disk,
            help="Stream experts: a rate as 7GB/s, or a file or folder whose disk is measured.",
        ),
    ] = None,
    format: Annotated[
        Literal["w8a8", "w4a8"] | None,
        typer.Option(help="As `fourfold export --format` would convert it.", show_default="as it is"),
    ] = None,
    kv: Annotated[
        Literal["published", "bf16"],
        typer.Option(help="How the KV cache is stored: published is FP8 and FP4."),
    ] = "bf16",
    context: Annotated[int, typer.Option(help="Tokens that each sequence has when decoded.", min=1)] = 8192,
    concurrency: Annotated[int, typer.Option(help="Sequences decoded together.", min=1)] = 1,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt that is prefilled.", min=1)] = 2048,
    power: Annotated[
        float | None,
        typer.Option(help="Watts of the whole machine.", min=0, show_default="the devices' listed power"),
    ] = None,
    electricity: Annotated[float | None, typer.Option(help="Price of a kWh.", min=0)] = None,
    price: Annotated[float | None, typer.Option(help="Price of the machine an hour.", min=0)] = None,
    currency: Annotated[
        str, typer.Option(help="Of --electricity and --price; nothing is converted.")
    ] = "USD",
    lora_rank: Annotated[
        int | None,
        typer.Option(help="Plan the training of an adapter of this rank instead of serving.", min=1),
    ] = None,
    lora_target: Annotated[
        list[str] | None,
        typer.Option(
            help="With --lora-rank: matrices by name, with * and ?; may be repeated.",
            show_default="*.attn.* and *.shared_experts.*",
        ),
    ] = None,
    lora_tokens: Annotated[
        int, typer.Option(help="With --lora-rank: tokens of the one row that a step computes at once.", min=1)
    ] = 2048,
    lora_recompute: Annotated[
        bool, typer.Option("--lora-recompute", help="With --lora-rank: as run.recompute.")
    ] = False,
    threads: options.Threads = 0,
    json: options.Json = False,
) -> int:
    """Predict fit, speed and cost before a download.

    From the config alone: where each part goes, bytes per token, decode and prefill speed by roofline, KV
    memory, and the cost of a million tokens beside the hosted API's list prices. Exits with 1 when the model
    does not fit.
    """
    from fourfold import plan as planning

    if lora_rank is not None:
        memory = planning.lora_memory(
            planning.find_model(model, format),
            lora_target,
            rank=lora_rank,
            rows=1,
            length=lora_tokens,
            recompute=lora_recompute,
        )
        return _print_lora(model, memory, ram, json)
    if power is not None and electricity is None:
        raise typer.BadParameter("--power needs --electricity, the price of a kWh")
    use_threads(threads)
    tariff = planning.Tariff(power=power, electricity=electricity, price=price, currency=currency)
    demand = replace(planning.find_model(model, format), kv=kv)
    planning.check(demand.config, context=context, concurrency=concurrency, prompt=prompt)
    device = _hardware(hardware)
    machine = planning.Machine(
        device=device,
        devices=devices,
        host=None if host is None else device if host == hardware else _hardware(host),
        ram=None if ram is None else int(_bytes(ram) or 0),
        disk_rate=None if disk is None else _disk_rate(disk, demand.one_expert_bytes),
    )
    found = planning.plan(
        demand,
        machine,
        model=model,
        context=context,
        concurrency=concurrency,
        prompt=prompt,
        tariff=tariff,
    )
    if json:
        console.document(found.to_json())
    else:
        _print(found)
    if found.placement.fits:
        return DONE
    console.note(
        f"{model} does not fit: needs {console.size(found.placement.missing)} more; "
        f"use {found.placement.advice}"
    )
    return FAILED


def _print_lora(model: str, memory: LoraMemory, ram: str | None, json: bool) -> int:
    """The memory of a training run, and whether there is so much."""
    from fourfold.tiers.memory import free_ram

    room = free_ram() if ram is None else int(_bytes(ram) or 0)
    fits = room is None or memory.total <= room
    if json:
        console.document({"model": model, **memory.to_json(), "ram": room, "fits": fits})
    else:
        parts = ("base", "adapter", "activations", "work", "total")
        rows = [(name, console.size(getattr(memory, name))) for name in parts]
        known = [] if room is None else [("RAM", console.size(room))]
        count = ("parameters", console.amount(memory.parameters))
        console.table(f"Training an adapter of {model}", ("", ""), [count, *rows, *known])
    if not fits:
        console.note(f"{model} does not fit: needs {console.size(memory.total - (room or 0))} more")
    return DONE if fits else FAILED


def _hardware(name: str) -> Hardware:
    from fourfold.plan import listed_hardware, measure_here

    if name != "here":
        return listed_hardware(name)
    console.note("measuring this machine")
    return measure_here()


def _disk_rate(text: str, block: int) -> float:
    from fourfold.plan import disk_read_rate

    if not Path(text).exists() and (rate := _bytes(text.removesuffix("/s"))) is not None:
        return rate
    console.note(f"measuring the disk of {text}")
    return disk_read_rate(Path(text), block)


def _print(plan: Plan) -> None:
    """Facts, places, speeds, costs, assumptions."""
    console.table(f"{plan.model} on {_machine(plan)}", ("", ""), _facts(plan), justify="left")
    console.answer("\n")
    parts = [(part.part, part.place or "nowhere", console.size(part.bytes)) for part in plan.placement.parts]
    console.table("Where it goes", ("part", "place", "size"), parts)
    if plan.prefill is not None:
        console.answer("\n")
        heads = ("", "tok/s", "each", "read", "limit", "time")
        console.table("Predicted speed", heads, _speeds(plan, plan.prefill))
    if plan.costs or plan.hosted:
        console.answer("\n")
        columns = ("per million tokens", "", "cached input", "input", "output")
        console.table("Cost", columns, _costs(plan))
    if plan.reports:
        console.answer("\n")
        rows = [(f"{report.devices} x, {report.what}", report.value) for report in plan.reports]
        console.table("Published by others for their engines, not measured by us", ("", ""), rows)
    console.answer("\nAssumptions\n" + "".join(f"- {line}\n" for line in plan.assumptions))


def _machine(plan: Plan) -> str:
    machine = plan.machine
    count = f"{machine.devices} x " if machine.devices > 1 else ""
    return f"{count}{machine.device.title}" + (f" beside {machine.host.title}" if machine.host else "")


def _facts(plan: Plan) -> list[tuple[str, str]]:
    demand, device = plan.demand, plan.machine.device
    split = ", ".join(f"{name} {_read(size)}" for name, size in demand.read_by_format.items())
    rows = [
        (
            "parameters",
            f"{console.amount(demand.parameters_total)}, {console.amount(demand.parameters_active)} active",
        ),
        (
            "weights",
            f"{console.size(demand.total_bytes)}, one expert {console.size(demand.one_expert_bytes)}",
        ),
        ("read for a token", f"{_read(plan.bytes_per_token)} ({split})"),
        ("KV cache", f"{console.size(plan.kv_bytes)} a sequence of {plan.context:,} tokens"),
        (
            "hardware",
            f"{device.bandwidth / 1e9:,.0f} GB/s {'read' if device.measured else 'listed'}, "
            f"{device.bf16_peak / 1e12:,.3g} TFLOPS bf16"
            + (f", {device.cores:,.0f} core{'s'[: device.cores != 1]}" if device.cores else "")
            + (f", {device.nodes} memory nodes" if (device.nodes or 1) > 1 else ""),
        ),
        (
            "room",
            ", ".join(
                f"{name} {console.size(size)}" for name, size in plan.placement.room.items() if name != "disk"
            ),
        ),
    ]
    if plan.machine.host is not None:
        rows.append(("experts' uses on the device", f"{plan.placement.device_hits:.0%}, assumed"))
    if plan.on_each is not None:
        rows.append(("each device", plan.on_each))
    if plan.machine.disk_rate is not None:
        rows.append(("disk", f"{plan.machine.disk_rate / 1e9:.2f} GB/s of whole experts at random"))
        rows.append(("experts cached", f"{plan.placement.cached_share:.0%}"))
    fits = f"yes, up to {plan.placement.most_sequences:,} such sequences"
    lacking = f"no, needs {console.size(plan.placement.missing)} more"
    return [*rows, ("fits", fits if plan.placement.fits else lacking)]


def _speeds(plan: Plan, prefill: Speed) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for count, speeds in plan.decode.items():
        for speed in speeds:
            name = "decode, 1 sequence" if count == 1 else f"decode, {count} together"
            if speed.routing is not None:
                name += f", {speed.routing} routing, {speed.hit_rate:.0%} hits"
            rows.append((name, *_speed(speed, count)))
    return [*rows, (f"prefill, {plan.prompt:,} tokens, to the first token", *_speed(prefill, 1))]


def _speed(speed: Speed, count: int) -> tuple[str, ...]:
    seconds = speed.seconds
    time = f"{console.number(seconds)} s" if seconds >= 1 else f"{console.number(seconds * 1000)} ms"
    return (
        console.number(speed.tokens_per_second),
        console.number(speed.tokens_per_second / count),
        _read(speed.bytes_read),
        speed.limit,
        time,
    )


def _read(size: float) -> str:
    """Bytes that move, in decimal units as bandwidths are."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.2f} MB"


def _costs(plan: Plan) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for cost in plan.costs:
        who = "1 sequence" if cost.concurrency == 1 else f"{cost.concurrency} together"
        amounts = (f"{cost.input:.3g}", f"{cost.output:.3g}")
        rows.append((f"here, {who}, {cost.an_hour:.3g} {cost.currency} an hour", cost.currency, "", *amounts))
    for price in plan.hosted:
        dates = f"from {price.since}" if price.until is None else f"{price.since} to {price.until}"
        prices = (f"{price.cached_input:g}", f"{price.input:g}", f"{price.output:g}")
        rows.append((f"hosted {price.served}, {price.tariff}, {dates}", price.currency, *prices))
    return rows
