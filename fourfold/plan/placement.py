"""Where each part of a model goes: device memory, RAM, disk; and what is missing where it does not fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fourfold.errors import RequestError
from fourfold.plan.demand import Demand
from fourfold.plan.tables import Efficiency, Hardware

Place = Literal["device", "RAM", "disk"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to run on.

    device: computes; `devices` of them share the model.  host: the processor whose RAM can hold experts that
    a gpu or npu has no room for, and that computes those; None if there is none.  ram: bytes of RAM to use;
    None for what is free (of this machine) or listed, less a reserve.  disk_rate: bytes a second of reading
    whole experts at random, None if nothing shall be streamed.
    """

    device: Hardware
    devices: int = 1
    host: Hardware | None = None
    ram: int | None = None
    disk_rate: float | None = None

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise RequestError(f"devices is {self.devices}; allowed: 1 and more")
        if self.ram is not None and self.ram < 1:
            raise RequestError(f"ram is {self.ram} bytes; allowed: 1 and more")
        if self.host is not None and (not self.device.own_memory or self.host.own_memory):
            raise RequestError(
                f"host is {self.host.name} of kind {self.host.kind}, device {self.device.name} of kind "
                f"{self.device.kind}; allowed: a host of kind cpu or unified beside a gpu or npu"
            )


@dataclass(frozen=True)
class PlacedPart:
    """`bytes` of `part` that lie in `place`; None: there is none for them."""

    part: str
    place: Place | None
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where everything lies.

    fits: False if even the slowest place is too small or missing; `missing` bytes then lack, and `advice` is
    what to do.  room: bytes of each place that may be used.  expert_share: of the main layers' routed experts
    that lie in each place; those on disk pass through a cache of the others' size.  most_sequences: that fit
    at this context, their caches in the fastest place and the weights anywhere.
    """

    fits: bool
    parts: tuple[PlacedPart, ...]
    room: dict[Place, int]
    expert_share: dict[Place, float]
    most_sequences: int
    missing: int = 0
    advice: str = ""

    @property
    def cached_share(self) -> float:
        """Of the routed experts, the share that needs no disk."""
        return 1 - self.expert_share.get("disk", 0.0)

    @property
    def device_hits(self) -> float:
        """Of the uses of routed experts, the share that the device serves: as if all were used alike."""
        return self.expert_share.get("device", 0.0)


def place(
    demand: Demand, machine: Machine, *, context: int, concurrency: int, efficiency: dict[str, Efficiency]
) -> Placement:
    """Fill the fastest place first: all but experts and the KV cache, then experts; the rest flows down."""
    room = _room(machine, int(efficiency["reserve_gib"].value * 2**30))
    first, *others = room
    sequence = demand.kv_size(context)
    kv = concurrency * sequence
    fixed = demand.resident_bytes + kv
    parts = [PlacedPart("dense, embedding, head, MTP", first, demand.resident_bytes)]
    parts.append(PlacedPart(f"KV cache, {concurrency} x {context:,} tokens", first, kv))
    left = {first: max(room[first] - fixed, 0)} | {name: room[name] for name in others}
    experts = _fill(demand.expert_bytes, left)
    drafts = _fill(demand.mtp_expert_bytes, left)
    parts += [PlacedPart("routed experts", name, size) for name, size in experts.items()]
    parts += [PlacedPart("MTP experts", name, size) for name, size in drafts.items()]
    unplaced = demand.expert_bytes + demand.mtp_expert_bytes - sum(experts.values()) - sum(drafts.values())
    missing = max(fixed - room[first], 0) + unplaced
    if unplaced:
        parts.append(PlacedPart("experts without a place", None, unplaced))
    spare = min(room[first] - demand.resident_bytes, sum(room.values()) - demand.total_bytes)
    return Placement(
        fits=missing == 0,
        parts=tuple(parts),
        room=room,
        expert_share={name: size / demand.expert_bytes for name, size in experts.items()},
        most_sequences=max(spare, 0) // max(sequence, 1),
        missing=missing,
        advice=_advice(machine, room[first], missing, kv, fixed > room[first], concurrency)
        if missing
        else "",
    )


def _room(machine: Machine, reserve: int) -> dict[Place, int]:
    """Usable bytes of each place there is, fastest first."""
    device = machine.device
    if not device.own_memory:
        return _with_disk(machine, {"RAM": _ram(machine, device, reserve)})
    room: dict[Place, int] = {"device": max(machine.devices * (device.memory - reserve), 0)}
    if machine.host is not None:
        room["RAM"] = _ram(machine, machine.host, reserve)
    return _with_disk(machine, room)


def _ram(machine: Machine, holder: Hardware, reserve: int) -> int:
    if machine.ram is not None:
        return machine.ram
    one = holder.memory if holder.available is None else holder.available
    count = 1 if machine.device.own_memory else machine.devices
    return max(count * (one - reserve), 0)


def _with_disk(machine: Machine, room: dict[Place, int]) -> dict[Place, int]:
    """A disk is as large as need be: the checkpoint lies there already."""
    return room if machine.disk_rate is None else room | {"disk": 1 << 62}


def _fill(amount: int, left: dict[Place, int]) -> dict[Place, int]:
    """Take `amount` out of `left`, in its order; returns what was taken, by place."""
    taken: dict[Place, int] = {}
    for name in left:
        if size := min(amount, left[name]):
            taken[name] = size
            left[name] -= size
            amount -= size
    return taken


def _advice(machine: Machine, room: int, missing: int, kv: int, first_is_full: bool, concurrency: int) -> str:
    ways = []
    if machine.device.own_memory:
        more = math.ceil(missing * machine.devices / room) if room else 1
        ways.append(f"--devices {machine.devices + more} or more")
        if machine.host is None and not first_is_full:
            ways.append("--host NAME, whose RAM holds the experts")
    if not machine.device.own_memory or machine.host is not None:
        ways.append("a larger --ram if the machine has more")
    if machine.disk_rate is None and not first_is_full:
        ways.append("--disk PATH or RATE, to stream experts")
    if kv >= missing:
        ways.append("a shorter --context" + (", fewer --concurrency" if concurrency > 1 else ""))
    return ", ".join(ways) if ways else "another machine"
