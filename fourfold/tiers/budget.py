"""What lies where: dense weights in RAM, and as many experts as the rest of the budget holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fourfold.config import ModelConfig
from fourfold.errors import RequestError
from fourfold.tiers.memory import free_ram, parse_ram, written
from fourfold.tiers.reader import READERS, buffer_bytes
from fourfold.tiers.table import ExpertTable
from fourfold.weights.load import Item

RESERVE = 8
"""An 8th of the free RAM is left to activations, KV cache and everybody else, unless the user says."""


@dataclass(frozen=True)
class Plan:
    """budget: RAM for weights, in bytes; None: as much as it takes.  dense: bytes of all weights but the
    routed experts.

    slots: experts that RAM holds, of `table.experts`, each of table.expert_bytes.  on_device: experts of each
    layer that the device holds, with all dense weights; None where the device is the CPU.
    """

    budget: int | None
    dense: int
    slots: int
    table: ExpertTable
    automatic: bool
    on_device: int | None = None

    def __str__(self) -> str:
        """One line for the user."""
        if self.on_device is not None:
            return self._on_two_sides()
        why = "the model does not fit in free RAM; " if self.automatic else ""
        assert self.budget is not None
        return (
            f"{why}RAM holds {self.slots:,} of {self.table.experts:,} experts "
            f"({written(self.table.nbytes)}), the others are read when needed "
            f"(weights in RAM: {written(self.budget)})"
        )

    def _on_two_sides(self) -> str:
        assert self.on_device is not None
        others = self.table.experts - self.on_device * len(self.table.layers)
        size = written(others * self.table.expert_bytes)
        why = "the model does not fit in free device memory; " if self.automatic else ""
        return (
            f"{why}the device holds {self.on_device} of {self.table.per_layer} experts a layer, RAM "
            f"{self.slots:,} of the {others:,} others ({size}), which the CPU computes; each is read when it "
            "is first needed"
        )


def plan(items: Sequence[Item], config: ModelConfig, ram: str | int | None) -> Plan | None:
    """How to keep to `ram`; None: everything fits and is resident.

    ram: bytes for weights, expert cache and read buffers (activations and KV cache come on top); None: the
    free RAM less an 8th, where the whole model is more than that.
    RequestError: no size, or too small for the dense weights and what one layer needs for a token.
    CheckpointError: the layers store their experts differently.
    """
    total = sum(item.stored.nbytes for item in items)
    budget = _automatic() if ram is None else parse_ram(ram)
    if budget is None or total <= budget:
        return None
    table = ExpertTable.of_checkpoint(items, config.n_routed_experts)
    dense = total - table.nbytes
    buffers = READERS * buffer_bytes(table.expert_bytes)
    fixed = dense + buffers
    least = min(least_slots(config), table.experts)
    slots = (budget - fixed) // table.expert_bytes
    if slots < least:
        raise _too_small(budget, ram is None, fixed + least * table.expert_bytes, dense)
    return Plan(budget, dense, min(slots, table.experts), table, ram is None)


def plan_beside(
    items: Sequence[Item],
    config: ModelConfig,
    device: str | int | None,
    free: int | None,
    ram: str | int | None,
) -> Plan | None:
    """How to keep to `device` bytes of an accelerator's memory and to `ram`; None: all fits on the device.

    device: for weights (activations and KV cache come on top); None: what is `free` there (None: unknown)
    less an 8th.  ram: for the other experts and read buffers; None: the free RAM less an 8th, where they need
    more.  RequestError, CheckpointError as in `plan`.
    """
    total = sum(item.stored.nbytes for item in items)
    room = parse_ram(device, "device_memory") if device is not None else free and free - free // RESERVE
    if room is None or total <= room:
        return None
    table = ExpertTable.of_checkpoint(items, config.n_routed_experts)
    dense = total - table.nbytes
    if dense > room:
        which = "device_memory is" if device is not None else "free device memory allows"
        least = f"{-(-dense // 1024)}KiB and more, its dense weights"
        raise RequestError(f"{which} {written(room)}; allowed for this model: {least}")
    layers = len(table.layers)
    on_device = (room - dense) // (layers * table.expert_bytes)
    others = table.experts - layers * on_device
    budget = _automatic() if ram is None else parse_ram(ram)
    buffers = READERS * buffer_bytes(table.expert_bytes)
    slots = others if budget is None else min(others, (budget - buffers) // table.expert_bytes)
    fewest = min(least_slots(config), others)
    if slots < fewest:
        assert budget is not None
        raise _too_small(budget, ram is None, buffers + fewest * table.expert_bytes, 0)
    return Plan(budget, dense, slots, table, device is None, on_device)


def least_slots(config: ModelConfig) -> int:
    """One layer's experts for a token while those of the next are read."""
    return 2 * config.num_experts_per_tok


def _too_small(budget: int, automatic: bool, least: int, dense: int) -> RequestError:
    weights = f"{written(dense)} of dense weights, " if dense else ""
    return RequestError(
        f"{'free RAM allows' if automatic else 'ram is'} {written(budget)}; allowed for this model: "
        # Rounded down to a printed digit it would be refused again.
        f"{-(-least // 1024)}KiB and more: {weights}room to read into, and what one layer needs for a token"
    )


def _automatic() -> int | None:
    free = free_ram()
    return None if free is None else free - free // RESERVE
