"""The package's tables: hardware facts, efficiencies and hosted prices, read strictly from TOML."""

from __future__ import annotations

import datetime
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from fourfold.errors import ConfigError

Kind = Literal["cpu", "unified", "gpu", "npu"]
"""cpu and unified compute where the RAM is; gpu and npu have memory of their own."""

FIGURES = ("memory_gb", "bandwidth_gb_s", "bf16_tflops", "cores", "fp8_tflops", "int8_tops", "power_w")
_NEEDED = FIGURES[:3]
_T = TypeVar("_T")
_LARGEST = 1e9  # of any figure; far above all hardware, and no sum or product of such figures overflows


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number, in the unit that its name says; where it is from; uncertain figures say why in `note`."""

    value: float
    source: str
    checked: datetime.date | None = None
    uncertain: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device.  `figures` has memory_gb, bandwidth_gb_s and bf16_tflops, and others where known (FIGURES).

    decodes: stored formats that it has no products of, so that such weights are decoded first.  local_heads:
    numbers of heads on one device that its attention operators take; empty if any.
    measured: the bandwidth is what reading reaches, not a listed peak.  nodes, available: of this machine
    only; its memory nodes, and the bytes of RAM that are free now.
    """

    name: str
    title: str
    kind: Kind
    figures: Mapping[str, Figure]
    decodes: tuple[str, ...] = ()
    local_heads: tuple[int, ...] = ()
    measured: bool = False
    nodes: int | None = None
    available: int | None = None

    @property
    def memory(self) -> int:
        """Bytes of memory of one device."""
        return int(self.figures["memory_gb"].value * 1e9)

    @property
    def bandwidth(self) -> float:
        """Bytes a second: a listed peak, or a measured plain read."""
        return self.figures["bandwidth_gb_s"].value * 1e9

    @property
    def bf16_peak(self) -> float:
        """Operations a second of bf16 products with float32 sums."""
        return self.figures["bf16_tflops"].value * 1e12

    @property
    def cores(self) -> float | None:
        """Cores of a processor that share the work; None where that is not known."""
        return self.figures["cores"].value if "cores" in self.figures else None

    @property
    def own_memory(self) -> bool:
        """Whether its memory is another than the host's RAM."""
        return self.kind in ("gpu", "npu")

    def uncertain(self) -> list[str]:
        """A line for every figure that predictions rest on and that is not certain."""
        return [
            f"{name}: {figure.note}"
            for name, figure in self.figures.items()
            if figure.uncertain and name in (*_NEEDED, "power_w")
        ]


@dataclass(frozen=True)
class Efficiency:
    """A share, or a fixed time or size, that predictions use; source: how it was got."""

    value: float
    what: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """A speed that others published for their own engine; never measured by us.

    hardware: names in hardware.toml; devices: how many of them.  what: format and conditions; value: the
    figure as they give it.
    """

    model: str
    hardware: tuple[str, ...]
    devices: int
    what: str
    value: str
    source: str
    checked: datetime.date


@dataclass(frozen=True, kw_only=True)
class HostedPrice:
    """A list price of DeepSeek's API, per million tokens; `served`: the model that answered."""

    model: str
    served: str
    tariff: str
    currency: str
    cached_input: float
    input: float
    output: float
    since: datetime.date | None = None
    until: datetime.date | None = None
    checked: datetime.date
    source: str


def hardware_names() -> list[str]:
    """The names that `listed_hardware` knows."""
    return sorted(_listed())


def listed_hardware(name: str) -> Hardware:
    """A device by its name in hardware.toml, or of the TOML file at that path.

    A file has the same schema with one [hardware.NAME]; a figure may be a bare number.  ConfigError: no such
    name, or a file that says something else.
    """
    if name in _listed():
        return _listed()[name]
    file = Path(name)
    if not file.is_file():
        raise ConfigError(
            f"hardware is {name!r}; allowed: here, {', '.join(hardware_names())}, or a TOML file of that form"
        )
    try:
        devices = _devices(tomllib.loads(file.read_text(encoding="utf-8")), name, str(file))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: not a hardware file in TOML ({error})") from error
    if len(devices) != 1:
        raise ConfigError(f"{name} describes {len(devices)} devices; allowed: one [hardware.NAME]")
    return next(iter(devices.values()))


@functools.cache
def efficiencies() -> dict[str, Efficiency]:
    """The table of efficiency.toml."""
    return {name: Efficiency(**entry) for name, entry in _packaged("efficiency.toml").items()}


@functools.cache
def hosted_prices() -> tuple[HostedPrice, ...]:
    """The table of prices.toml, oldest first for each model."""
    return tuple(HostedPrice(**entry) for entry in _packaged("prices.toml")["price"])


@functools.cache
def reports() -> tuple[Report, ...]:
    """The table of reports.toml."""
    return tuple(
        Report(**{**entry, "hardware": tuple(entry["hardware"])})
        for entry in _packaged("reports.toml")["report"]
    )


@functools.cache
def _listed() -> dict[str, Hardware]:
    return _devices(_packaged("hardware.toml"), "hardware.toml", None)


def _packaged(name: str) -> dict[str, Any]:
    return tomllib.loads((resources.files("fourfold.plan") / name).read_text(encoding="utf-8"))


def _devices(data: Mapping[str, Any], where: str, stated_by: str | None) -> dict[str, Hardware]:
    """The devices of a file; stated_by: what bare numbers and figures without a source give as theirs."""
    _known(data, ("sources", "hardware"), where)
    sources = _table(data.get("sources", {}), f"{where}: sources")
    devices = {}
    for name, entry in _table(data.get("hardware", {}), f"{where}: hardware").items():
        at = f"{where}: hardware.{name}"
        _known(_table(entry, at), ("title", "kind", "decodes", "local_heads", *FIGURES), at)
        kind, title = entry.get("kind", "cpu"), entry.get("title", name)
        if kind not in get_args(Kind) or not isinstance(title, str):
            raise ConfigError(
                f"{at}: kind is {kind!r}, title {title!r}; allowed: {', '.join(get_args(Kind))}"
            )
        if missing := [figure for figure in _NEEDED if figure not in entry]:
            raise ConfigError(f"{at} lacks {', '.join(missing)}; add it")
        figures = {
            figure: _figure(entry[figure], sources, f"{at}.{figure}", stated_by)
            for figure in FIGURES
            if figure in entry
        }
        devices[name] = Hardware(
            name=name,
            title=title,
            kind=cast(Kind, kind),
            figures=figures,
            decodes=_list(entry, "decodes", str, at),
            local_heads=_list(entry, "local_heads", int, at),
        )
    return devices


def _list(entry: Mapping[str, Any], key: str, kind: type[_T], at: str) -> tuple[_T, ...]:
    """A list of the entry's, empty if it has none."""
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
        raise ConfigError(f"{at}.{key} is {value!r}; allowed: a list of {kind.__name__}")
    return tuple(value)


def _figure(entry: Any, sources: Mapping[str, Any], at: str, stated_by: str | None) -> Figure:
    fields = entry if isinstance(entry, Mapping) else {"value": entry}
    _known(fields, ("value", "source", "uncertain", "note"), at)
    value = fields.get("value")
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= _LARGEST:
        raise ConfigError(f"{at} is {value!r}; allowed: a number above 0, at most {_LARGEST:g}")
    name = fields.get("source")
    if name is None and stated_by is not None:
        source, checked = stated_by, None
    elif isinstance(name, str) and name in sources:
        source, checked = sources[name]["url"], sources[name].get("checked")
    else:
        raise ConfigError(f"{at}.source is {name!r}; allowed: {', '.join(sources) or 'none: there are none'}")
    return Figure(
        value=float(value),
        source=source,
        checked=checked,
        uncertain=bool(fields.get("uncertain", False)),
        note=str(fields.get("note", "")),
    )


def _table(value: Any, at: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{at} is {value!r}; allowed: a table")
    return value


def _known(data: Mapping[str, Any], allowed: tuple[str, ...], at: str) -> None:
    if unknown := sorted(data.keys() - set(allowed)):
        raise ConfigError(f"{at} has {', '.join(unknown)}; allowed: {', '.join(allowed)}")
