"""Before any download: does a model fit a machine, where do its parts go, how fast, at what cost."""

from fourfold.plan.cost import Cost, Tariff
from fourfold.plan.demand import Demand
from fourfold.plan.lora import LoraMemory, lora_memory
from fourfold.plan.measure import NativeProbe, Probe, TorchProbe, disk_read_rate, measure_here
from fourfold.plan.placement import Machine, PlacedPart, Placement
from fourfold.plan.planner import CONVERTED, Plan, check, find_model, plan
from fourfold.plan.speed import Speed
from fourfold.plan.tables import (
    Efficiency,
    Figure,
    Hardware,
    HostedPrice,
    Report,
    efficiencies,
    hardware_names,
    listed_hardware,
)

__all__ = [
    "CONVERTED",
    "Cost",
    "Demand",
    "Efficiency",
    "Figure",
    "Hardware",
    "HostedPrice",
    "LoraMemory",
    "Machine",
    "NativeProbe",
    "PlacedPart",
    "Placement",
    "Plan",
    "Probe",
    "Report",
    "Speed",
    "Tariff",
    "TorchProbe",
    "check",
    "disk_read_rate",
    "efficiencies",
    "find_model",
    "hardware_names",
    "listed_hardware",
    "lora_memory",
    "measure_here",
    "plan",
]
