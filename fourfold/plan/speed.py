"""Roofline speeds: the time of a step is what its slowest resource needs, and a fixed time a layer.

Decoding reads the dense weights once a step, the experts that its tokens meet, and each sequence's KV cache.
Prefill does the same a chunk at a time, where operations mostly decide.  A processor's cores unpack what
they read and then multiply: the two add up, and memory is the limit where it is slower than that.  What lies
in RAM beside a gpu is read and computed by the host, after the device's part of the layer; reads from disk
overlap with both.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from fourfold.plan.demand import Demand
from fourfold.plan.placement import Machine, Placement
from fourfold.plan.tables import Efficiency, Hardware

Limit = Literal["memory", "compute", "disk", "fixed time"]
Routing = Literal["uniform", "skewed"]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A predicted rate.

    seconds: of one decoding step, or of the whole prompt.  bytes_read: weights and KV of the step, or of all
    chunks.  limit: what takes longest.  routing, hit_rate: how experts that are partly on disk were assumed
    to be chosen, and the share of reads that the cache then serves; None and 1.0 without a disk.
    """

    tokens_per_second: float
    seconds: float
    bytes_read: float
    limit: Limit
    routing: Routing | None = None
    hit_rate: float = 1.0


@dataclass(frozen=True)
class _Work:
    """Of a step or a part of it: bytes read, of weights and KV and of activations; operations."""

    read: float
    products: float
    attention: float = 0.0
    streams: float = 0.0


@dataclass(frozen=True)
class _Unit:
    """Something that reads and computes.

    bandwidth: bytes a second that memory gives; cores: that its cores can unpack, without a bound where their
    number is not known; products, attention: operations a second.
    """

    bandwidth: float
    cores: float
    products: float
    attention: float

    def seconds(self, work: _Work) -> tuple[float, float]:
        """What memory takes, and what the rest takes."""
        computes = work.products / self.products + work.attention / self.attention
        if math.isinf(self.cores):
            return (work.read + work.streams) / self.bandwidth, computes
        # A processor's caches hold what passes between the products.
        return work.read / self.bandwidth, computes + (work.read + work.streams) / self.cores


class Roofline:
    """Speeds of one model, placed on one machine, with given efficiencies."""

    def __init__(
        self, demand: Demand, machine: Machine, placement: Placement, efficiency: dict[str, Efficiency]
    ) -> None:
        self.demand, self.machine, self.placement = demand, machine, placement
        self.share = {name: entry.value for name, entry in efficiency.items()}
        self.device = self._unit(machine.device, machine.devices)
        self.host = None if machine.host is None else self._unit(machine.host, 1)

    def decode(self, context: int, concurrency: int) -> list[Speed]:
        """A token for each of `concurrency` sequences of `context` tokens; two Speeds with a disk."""
        return [self._decode(context, concurrency, routing) for routing in self._routings()]

    def prefill(self, prompt: int, chunk: int) -> Speed:
        """A prompt of one sequence in chunks; its seconds are the time to the first token."""
        demand = self.demand
        total, read = 0.0, 0.0
        longest: Counter[Limit] = Counter()
        # A chunk meets nearly every expert, whatever the routing: the cache serves its own share alone.
        hits = self.placement.cached_share
        for start in range(0, prompt, chunk):
            tokens = min(chunk, prompt - start)
            last = start + tokens == prompt
            work = _Work(
                read=demand.dense_bytes - (0 if last else demand.head_bytes),
                products=tokens * demand.product_operations(head=False)
                + (2.0 * demand.head_parameters if last else 0.0),
                attention=tokens * demand.attention_operations(start + tokens // 2),
                streams=self._streams(tokens),
            )
            seconds, limit, some = self._step(work, tokens, hits)
            total += seconds
            read += some
            longest[limit] += 1
        return Speed(
            tokens_per_second=prompt / total,
            seconds=total,
            bytes_read=read,
            limit=longest.most_common(1)[0][0],
            hit_rate=hits,
        )

    def _decode(self, context: int, concurrency: int, routing: Routing | None) -> Speed:
        demand = self.demand
        work = _Work(
            read=demand.dense_bytes + concurrency * demand.kv_read(context),
            products=concurrency * demand.product_operations(head=True),
            attention=concurrency * demand.attention_operations(context),
            streams=self._streams(concurrency),
        )
        seconds, limit, read = self._step(work, concurrency, self._hit_rate(routing))
        return Speed(
            tokens_per_second=concurrency / seconds,
            seconds=seconds,
            bytes_read=read,
            limit=limit,
            routing=routing,
            hit_rate=self._hit_rate(routing),
        )

    def _streams(self, tokens: int) -> float:
        # A token's streams are one core's work: fewer tokens than cores leave some idle.
        busy = max(tokens, self.machine.device.cores or 1)
        return busy * self.demand.stream_bytes() * self.share["stream_passes"]

    def _step(self, work: _Work, tokens: int, hit_rate: float) -> tuple[float, Limit, float]:
        """Seconds of a step, what limits it, and the bytes it reads.  work: experts in its products alone."""
        demand = self.demand
        experts = demand.expert_read(tokens)
        on_host = 0.0 if self.host is None else 1 - self.placement.device_hits
        chosen = demand.config.num_experts_per_tok / demand.config.n_routed_experts
        moved = _Work(experts * on_host, 2.0 * tokens * demand.expert_parameters * chosen * on_host)
        kept = replace(work, read=work.read + experts - moved.read, products=work.products - moved.products)
        reads, computes = self.device.seconds(kept)
        busy = max(reads, computes)
        if self.host is not None:
            host_reads, host_computes = self.host.seconds(moved)
            busy += max(host_reads, host_computes)
            reads, computes = reads + host_reads, computes + host_computes
        disk = 0.0
        if self.machine.disk_rate is not None:
            disk = experts * (1 - hit_rate) / (self.machine.disk_rate * self.share["disk_read"])
        several = (self.machine.device.cores or 1) > 1
        layer = self.share["layer_seconds"] + several * self.share["unshared_seconds"]
        fixed = demand.config.num_hidden_layers * layer
        times: dict[Limit, float] = {
            "memory": reads, "compute": computes, "disk": disk, "fixed time": fixed
        }  # fmt: skip
        limit = max(times, key=lambda name: times[name])
        return max(busy, disk) + fixed, limit, work.read + experts

    def _unit(self, hardware: Hardware, count: int) -> _Unit:
        together = count * (self.share["several_devices"] if count > 1 else 1.0)
        listed = 1.0 if hardware.measured else self.share["listed_read"]
        cores = math.inf if hardware.cores is None else hardware.cores * self.share["core_read"] * 1e9
        return _Unit(
            bandwidth=hardware.bandwidth * listed * self.share["decode_read"] * together,
            cores=cores * together,
            products=hardware.bf16_peak * self.share["prefill_compute"] * together,
            attention=hardware.bf16_peak * self.share["attention_compute"] * together,
        )

    def _routings(self) -> tuple[Routing | None, ...]:
        return ("uniform", "skewed") if self.placement.cached_share < 1 else (None,)

    def _hit_rate(self, routing: Routing | None) -> float:
        """uniform: the cached share; skewed: its square root, an assumption (real routing is not known)."""
        share = self.placement.cached_share
        return math.sqrt(share) if routing == "skewed" else share
