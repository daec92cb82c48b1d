"""What is best among settings that meet an SLA: one word, and the order it puts them in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from engine.spec.names import did_you_mean
from policies.constraint import Metric
from policies.errors import PolicyInputError
from policies.numbers import counted, short
from policies.points import OperatingPoint
from policies.report import finite
from policies.sla import Sla

SECONDS_PER_HOUR = 3600.0
MAX_PRICE = 1e9
# Differences below this share are noise of runs: the next criterion decides.
NOTICEABLE = 0.01
GOODPUT = "goodput_rps"


class Objective(StrEnum):
    """What to look for among settings that meet the SLA.

    ``devices``: fewest (the default). ``latency``: lowest latencies against their bounds.
    ``throughput``: most output tokens a second. ``cost``: least device time per output token.
    ``headroom``: farthest from every bound. ``pareto``: the trade of goodput per device against
    latency as a whole; of its ends, most goodput per device is called best.
    """

    DEVICES = "devices"
    LATENCY = "latency"
    THROUGHPUT = "throughput"
    COST = "cost"
    HEADROOM = "headroom"
    PARETO = "pareto"

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Raises PolicyInputError for a word that is none."""
        try:
            return cls(text)
        except ValueError as error:
            raise PolicyInputError(
                f"objective {text!r}: known are {', '.join(cls)}{did_you_mean(text, cls)}"
            ) from error

    @property
    def role(self) -> str:
        """What the best point by it is called."""
        return _ROLES[self]

    @property
    def boast(self) -> str:
        """What the best point by it has over all others that meet the SLA."""
        return f"{_BOASTS[self]} of all that meet the SLA"

    def order(self, point: OperatingPoint, sla: Sla) -> tuple[float, ...]:
        """Smaller is better; the next criterion decides between points that hardly differ."""
        return _ORDERS[self](point, sla)

    def values(self, point: OperatingPoint, sla: Sla) -> tuple[float, ...]:
        """What a search makes smallest: one number that puts points in this order, or the sides of
        a trade. Every difference counts, while :meth:`order` takes small ones for noise."""
        latency = point.latency_score(sla)
        match self:
            case Objective.DEVICES:
                # Latency decides between equals only, however long it is.
                return (point.cost_devices + 0.5 + 0.5 * math.tanh(latency / 2),)
            case Objective.LATENCY:
                return (latency,)
            case Objective.THROUGHPUT:
                return (-math.log(max(throughput_tokens_per_s(point), 1e-9)),)
            case Objective.COST:
                return (math.log(device_seconds_per_token(point)),)
            case Objective.HEADROOM:
                return (-point.headroom(sla),)
            case Objective.PARETO:
                return (-goodput_rps_per_device(point), latency)

    def tell(self, point: OperatingPoint, sla: Sla) -> str:
        """The number that it goes by, in words."""
        match self:
            case Objective.DEVICES:
                return counted(point.cost_devices, "device")
            case Objective.LATENCY:
                return f"latency {short(math.exp(point.latency_score(sla)))} of its bounds"
            case Objective.THROUGHPUT:
                return f"{short(throughput_tokens_per_s(point))} tokens/s"
            case Objective.COST:
                seconds = short(device_seconds_per_token(point) * 1e6)
                return f"{seconds} device-seconds per 1M tokens"
            case Objective.PARETO:
                return f"goodput {short(goodput_rps_per_device(point))} requests/s per device"
            case Objective.HEADROOM:
                return f"headroom {short(point.headroom(sla))}"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What an answer is to be best in. ``price_per_device_hour`` is in any currency;
    ``uses_all_devices`` leaves out plans on fewer.

    Raises:
        PolicyInputError: a price that is none.
    """

    objective: Objective = Objective.DEVICES
    price_per_device_hour: float | None = None
    uses_all_devices: bool = False

    def __post_init__(self) -> None:
        price = self.price_per_device_hour
        if price is not None and not 0 <= price <= MAX_PRICE:
            raise PolicyInputError(f"price {price} per device hour: must be in 0..{MAX_PRICE:g}")

    def to_json(self) -> dict[str, str | float | bool | None]:
        return {
            "objective": self.objective.value,
            "price_per_device_hour": self.price_per_device_hour,
            "uses_all_devices": self.uses_all_devices,
        }

    def cost_json(self, point: OperatingPoint) -> dict[str, float | None] | None:
        """What ``point`` costs per hour and per million output tokens (None: it gave none);
        nothing without a price."""
        price = self.price_per_device_hour
        if price is None:
            return None
        return {
            "per_hour": point.cost_devices * price,
            "per_million_output_tokens": finite(cost_per_million_tokens(point, price)),
        }


def cost_text(cost: dict[str, float | None]) -> str:
    """``Goal.cost_json`` in words."""
    hour, tokens = cost["per_hour"], cost["per_million_output_tokens"]
    told = f"{'-' if hour is None else short(hour)} per hour"
    return told if tokens is None else f"{told}, {short(tokens)} per million output tokens"


def throughput_tokens_per_s(point: OperatingPoint) -> float:
    """Output tokens per second; 0 where it was not observed."""
    estimate = point.metrics.get(Metric.THROUGHPUT.value)
    return 0.0 if estimate is None else estimate.value


def device_seconds_per_token(point: OperatingPoint) -> float:
    """Device seconds per output token; infinite without output."""
    rate = throughput_tokens_per_s(point)
    return point.cost_devices / rate if rate > 0 else math.inf


def goodput_rps_per_device(point: OperatingPoint) -> float:
    """Requests per second that met the SLA, per device; 0 where it was not observed."""
    estimate = point.metrics.get(GOODPUT)
    return 0.0 if estimate is None else estimate.value / point.cost_devices


def cost_per_million_tokens(point: OperatingPoint, price_per_device_hour: float) -> float:
    """Price of a million output tokens, in the price's currency."""
    return device_seconds_per_token(point) * 1e6 * price_per_device_hour / SECONDS_PER_HOUR


def rounded_chance(point: OperatingPoint, sla: Sla) -> float:
    """P(SLA met) in steps of 5 %: finer differences are noise of the intervals."""
    return round(point.probability(sla) * 20) / 20


def _by_devices(point: OperatingPoint, sla: Sla) -> tuple[float, ...]:
    return (point.cost_devices, -rounded_chance(point, sla), point.latency_score(sla))


def _by_latency(point: OperatingPoint, sla: Sla) -> tuple[float, ...]:
    return (point.latency_score(sla), point.cost_devices)


def _by_throughput(point: OperatingPoint, sla: Sla) -> tuple[float, ...]:
    return (-_steps(throughput_tokens_per_s(point)), *_by_devices(point, sla))


def _by_cost(point: OperatingPoint, sla: Sla) -> tuple[float, ...]:
    return (_steps(device_seconds_per_token(point)), *_by_devices(point, sla))


def _by_headroom(point: OperatingPoint, sla: Sla) -> tuple[float, ...]:
    return (-round(point.headroom(sla) / NOTICEABLE), *_by_devices(point, sla))


def _by_goodput(point: OperatingPoint, sla: Sla) -> tuple[float, ...]:
    return (-_steps(goodput_rps_per_device(point)), *_by_latency(point, sla))


def _steps(value: float) -> float:
    """``value`` on a scale whose steps of 1 are just noticeable."""
    if value <= 0:
        return -math.inf
    return math.inf if math.isinf(value) else round(math.log(value) / math.log1p(NOTICEABLE))


_ROLES = {
    Objective.DEVICES: "cheapest",
    Objective.LATENCY: "fastest",
    Objective.THROUGHPUT: "most throughput",
    Objective.COST: "least cost",
    Objective.HEADROOM: "most headroom",
    Objective.PARETO: "most goodput per device",
}
_BOASTS = {
    Objective.DEVICES: "fewest devices",
    Objective.LATENCY: "lowest latencies against their bounds",
    Objective.THROUGHPUT: "most output tokens a second",
    Objective.COST: "least device time per output token",
    Objective.HEADROOM: "farthest from the bounds",
    Objective.PARETO: "most requests within the SLA a second and device",
}
_ORDERS: dict[Objective, Callable[[OperatingPoint, Sla], tuple[float, ...]]] = {
    Objective.DEVICES: _by_devices,
    Objective.LATENCY: _by_latency,
    Objective.THROUGHPUT: _by_throughput,
    Objective.COST: _by_cost,
    Objective.HEADROOM: _by_headroom,
    Objective.PARETO: _by_goodput,
}
