"""What a million tokens costs: own hardware by power and price, the hosted API by its list."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass

from fourfold.config import ModelConfig
from fourfold.errors import RequestError
from fourfold.plan.tables import HostedPrice, hosted_prices
from fourfold.weights.synth import PRESETS, preset


@dataclass(frozen=True, kw_only=True)
class Tariff:
    """What the user pays: power, watts of the machine; electricity, price of a kWh; price, of an hour."""

    power: float | None = None
    electricity: float | None = None
    price: float | None = None
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name in ("power", "electricity", "price"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise RequestError(f"{name} is {value}; allowed: a number from 0")

    def an_hour(self, listed_power: float | None) -> float | None:
        """Cost of an hour, with the hardware's listed power where none is given; None if nothing is paid.

        RequestError: electricity has a price, and no power is known; or a power, and no price.
        """
        if self.electricity is None:
            if self.power is not None:
                raise RequestError(
                    "power is given and electricity is not; add --electricity, the price of a kWh"
                )
            return self.price
        power = listed_power if self.power is None else self.power
        if power is None:
            raise RequestError("electricity is given and no power is known; add --power, the machine's watts")
        return (self.price or 0.0) + power / 1000 * self.electricity


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Per million tokens, in `currency`, with `concurrency` sequences decoded together, never idle."""

    concurrency: int
    currency: str
    an_hour: float
    input: float
    output: float


def cost(an_hour: float, currency: str, concurrency: int, prefill: float, decode: float) -> Cost:
    """prefill, decode: tokens a second, all sequences together."""
    million = an_hour / 3600 * 1e6
    return Cost(
        concurrency=concurrency,
        currency=currency,
        an_hour=an_hour,
        input=million / prefill,
        output=million / decode,
    )


def hosted(config: ModelConfig, today: datetime.date) -> list[HostedPrice]:
    """The hosted API's prices for this model that stand on `today`, and the last ones for the model itself.

    Empty for a model that is not offered.
    """
    name = family(config)
    own = [price for price in hosted_prices() if price.model == name]
    latest: dict[str, datetime.date] = {}
    for price in own:
        latest[price.served] = max(
            latest.get(price.served, datetime.date.min), price.since or datetime.date.min
        )
    return [
        price
        for price in own
        if (price.since or datetime.date.min) <= today
        and (price.since or datetime.date.min) == latest[price.served]
    ]


def family(config: ModelConfig) -> str | None:
    """The published model whose sizes these are."""
    sizes = ("hidden_size", "num_hidden_layers", "n_routed_experts", "vocab_size")
    for name in PRESETS[:2]:
        published = preset(name)
        if all(getattr(config, size) == getattr(published, size) for size in sizes):
            return name
    return None
