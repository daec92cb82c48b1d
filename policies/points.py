"""Operating points: what an engine with some settings is predicted or measured to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.constraint import Constraint, Op
from policies.errors import PolicyInputError
from policies.report import finite
from policies.runs import Runs
from policies.sla import Sla

# An Estimate's low..high holds the truth with this probability, so its ends are this many standard
# errors from the value.
INTERVAL_LEVEL = 0.9
INTERVAL_Z = NormalDist().inv_cdf(0.5 + INTERVAL_LEVEL / 2)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its 90 % interval; ``low == high`` when it is taken as exact.

    ``certainty`` is the most that any bound's chance can be: three requests cannot prove a p95,
    however fast they were.

    Raises:
        PolicyInputError: low <= value <= high or 0 <= certainty <= 1 does not hold.
    """

    value: float
    low: float
    high: float
    certainty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.certainty <= 1:
            raise PolicyInputError(f"certainty {self.certainty}: must be a share from 0 to 1")
        if not self.low <= self.value <= self.high:
            raise PolicyInputError(
                f"estimate {self.value}: interval {self.low}..{self.high} must hold it"
            )

    @classmethod
    def exact(cls, value: float) -> Estimate:
        return cls(value=value, low=value, high=value)

    def probability(self, constraint: Constraint) -> float:
        """Chance that the truth meets ``constraint``, normal on each side of the value and at most
        ``certainty``."""
        return min(self.certainty, self._chance(constraint))

    def find_bound(self, chance: float, op: Op) -> float | None:
        """The tightest bound that the truth meets with ``chance`` (above 0.5); None: there is none.

        The inverse of :meth:`probability`.
        """
        half_width = self.high - self.value if op is Op.AT_MOST else self.value - self.low
        if chance > self.certainty or not math.isfinite(self.value + half_width):
            return None
        if half_width == 0:
            return self.value
        if chance >= 1:
            return None
        way = half_width * NormalDist().inv_cdf(chance) / INTERVAL_Z
        return self.value + way if op is Op.AT_MOST else self.value - way

    def _chance(self, constraint: Constraint) -> float:
        bound, is_at_most = constraint.bound, constraint.op is Op.AT_MOST
        if math.isinf(self.value) or math.isinf(bound - self.value):
            return float(constraint.is_met_by(self.value))
        half_width = self.high - self.value if bound > self.value else self.value - self.low
        if half_width == 0:
            return float(constraint.is_met_by(self.value))
        below = NormalDist().cdf((bound - self.value) * INTERVAL_Z / half_width)
        return below if is_at_most else 1 - below

    def to_json(self) -> dict[str, float]:
        parts = {"value": self.value, "low": self.low, "high": self.high}
        return parts if self.certainty == 1 else {**parts, "certainty": self.certainty}


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """One engine's settings under one workload at one rate.

    ``metrics`` is keyed by the SLA's words (``p95_ttft_ms``, ``attainment``,
    ``throughput_tokens_per_s``; see ``policies.report.flat_metrics``). A missing metric was not
    observed, so it passes no bound. If more is known than one run showed, chances go by ``beliefs``
    instead of the metrics (``tuner.search.evidence``). ``runs``, if they are kept, are the
    simulations behind the numbers, with slower steps and of other draws; chances then go by them.
    ``told_chance`` is P(SLA met) of a point that was read back from an answer, which has neither.
    """

    settings: Settings
    fidelity: Fidelity
    metrics: Mapping[str, Estimate]
    beliefs: Mapping[str, Estimate] = field(default_factory=dict)
    runs: Runs | None = None
    told_chance: float | None = None

    @property
    def cost_devices(self) -> int:
        """Devices it takes."""
        return self.settings.plan.world_size

    def actual(self, constraint: Constraint) -> float | None:
        """The number that ``constraint`` bounds; None if it was not observed."""
        estimate = self.metrics.get(constraint.key)
        return None if estimate is None else estimate.value

    def is_met(self, constraint: Constraint) -> bool:
        actual = self.actual(constraint)
        return actual is not None and constraint.is_met_by(actual)

    def margin(self, constraint: Constraint) -> float:
        """Share of the budget left; minus infinity if nothing was observed."""
        actual = self.actual(constraint)
        return -math.inf if actual is None else constraint.margin(actual)

    def headroom(self, sla: Sla) -> float:
        """The smallest margin of all constraints of ``sla``."""
        return min(self.margin(c) for c in sla.per_run)

    def probability(self, sla: Sla) -> float:
        """P(SLA met)."""
        return self.joint_chance(sla.per_run) if self.told_chance is None else self.told_chance

    def joint_chance(self, constraints: Sequence[Constraint]) -> float:
        """The chance that all of ``constraints`` are met in the same run.

        Simulated numbers are off by how slow steps really are, which drives all of them together:
        by ``runs``, or else the least chance of all. What live requests show of one constraint says
        less of another: there it is the product, a lower bound where errors move together.
        """
        if self.runs is not None:
            return self.runs.chance(constraints)
        chances = [self.chance(c) for c in constraints]
        return min(chances, default=1.0) if self._is_one_scale else math.prod(chances)

    def find_bound(
        self, constraint: Constraint, others: Sequence[Constraint], chance: float
    ) -> float | None:
        """The tightest bound of ``constraint`` that is met with ``chance`` together with
        ``others``; None: there is none."""
        if self.runs is not None:
            return self.runs.find_bound(constraint, others, chance)
        left, belief = self.joint_chance(others), self.belief(constraint)
        if belief is None or left < chance:
            return None
        return belief.find_bound(chance if self._is_one_scale else chance / left, constraint.op)

    @property
    def _is_one_scale(self) -> bool:
        return self.fidelity in (Fidelity.SIMULATED, Fidelity.PREDICTED) and not self.beliefs

    def belief(self, constraint: Constraint) -> Estimate | None:
        """What is known of the number that ``constraint`` bounds."""
        return self.beliefs.get(constraint.key) or self.metrics.get(constraint.key)

    def chance(self, constraint: Constraint) -> float:
        """Chance that ``constraint`` is met; 0 if nothing was observed."""
        if self.runs is not None:
            return self.runs.chance([constraint])
        estimate = self.belief(constraint)
        return 0.0 if estimate is None else estimate.probability(constraint)

    @property
    def has_interval(self) -> bool:
        """Whether its certainty is known; a single exact simulation says nothing of it."""
        return any(e.low < e.high for e in self.metrics.values())

    @property
    def runs_full_decodes_in_base(self) -> bool:
        """Whether a step of ``max_num_seqs`` decodes lies above the shift threshold."""
        settings = self.settings
        return settings.is_by_threshold and settings.largest_below_base < settings.caps.max_num_seqs

    def latency_score(self, sla: Sla) -> float:
        """How slow the point is: mean log of each latency over its bound (lower is faster).

        If the SLA bounds no latency of a run, it is the mean log of all known latencies.
        """
        bounds = {c.key: c.bound for c in sla.per_run if c.metric.is_latency}
        if not bounds:
            bounds = {key: 1.0 for key in self.metrics if key.endswith("_ms")}
        known = [(self.metrics[k].value, b) for k, b in bounds.items() if k in self.metrics]
        if not known:
            return math.inf
        return sum(math.log(max(v, 1e-9) / b) for v, b in known) / len(known)


def is_faster(point: OperatingPoint, other: OperatingPoint) -> bool:
    """Whether ``point`` beats ``other`` by more than 1 % over the latencies both know."""
    shared = [k for k in point.metrics if k.endswith("_ms") and k in other.metrics]
    ratios = [
        math.log(max(point.metrics[k].value, 1e-9) / max(other.metrics[k].value, 1e-9))
        for k in shared
    ]
    return bool(ratios) and sum(ratios) / len(ratios) < math.log1p(-0.01)


EstimateJson = dict[str, dict[str, float | None]]


def estimates_to_json(metrics: Mapping[str, Estimate]) -> EstimateJson:
    """Estimates with None where JSON has no number (a share of requests failed: infinite)."""
    return {
        key: {name: finite(value) for name, value in estimate.to_json().items()}
        for key, estimate in metrics.items()
    }


def estimates_from_json(raw: EstimateJson) -> dict[str, Estimate]:
    """The inverse of :func:`estimates_to_json`.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: another document.
    """

    def number(value: float | None) -> float:
        return float("inf") if value is None else float(value)

    return {
        key: Estimate(
            value=number(parts["value"]),
            low=number(parts["low"]),
            high=number(parts["high"]),
            certainty=number(parts.get("certainty", 1.0)),
        )
        for key, parts in raw.items()
    }


ExactJson = dict[str, float | str]


def exact_to_json(metrics: Mapping[str, Estimate]) -> ExactJson:
    """The values of exact estimates, to the last bit; a value that JSON has no number for by its
    name."""
    assert all(e == Estimate.exact(e.value) for e in metrics.values()), "no interval is dropped"
    return numbers_to_json({key: estimate.value for key, estimate in metrics.items()})


def exact_from_json(raw: ExactJson) -> dict[str, Estimate]:
    """The inverse of :func:`exact_to_json`."""
    return {key: Estimate.exact(value) for key, value in numbers_from_json(raw).items()}


def numbers_to_json(numbers: Mapping[str, float]) -> ExactJson:
    """Numbers with ``inf`` as a word, since JSON has none for it."""
    return {key: v if math.isfinite(v) else str(float(v)) for key, v in numbers.items()}


def numbers_from_json(raw: ExactJson) -> dict[str, float]:
    """The inverse of :func:`numbers_to_json`."""
    return {key: float(v) if isinstance(v, str) else v for key, v in raw.items()}
