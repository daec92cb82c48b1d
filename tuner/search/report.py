"""The ``tune --out`` document."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.capacity_table import CapacityTable
from policies.drift import StepSum
from policies.objective import Objective
from policies.points import EstimateJson, OperatingPoint, estimates_to_json
from policies.report import finite
from policies.schedule import Schedule
from policies.select import ChoiceReason, Selection
from policies.sla import Sla
from policies.verdict import MIN_CHANCE, is_dependable
from tuner.described.title import Title
from tuner.launch.command import LaunchCommand
from tuner.search.costs import Cost, costs_json
from tuner.search.fresh import FreshDraws
from tuner.search.pareto_front import pareto_json
from tuner.search.spec import TuningSpec
from tuner.search.trials import TrialRecord
from tuner.spec.space import PrunedPlan

SCHEMA = "tuning-report/v2"


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """A winner measured again; ``point`` None where it could not run, or where there was no device
    time for it (``is_out_of_budget``). ``is_met``: it may stay the winner. ``log_slower`` is how
    much slower than simulated its tokens came (mean TPOT), as a log ratio."""

    settings: Settings
    seed: int
    point: OperatingPoint | None
    reason: str
    is_met: bool = False
    sla_probability: float | None = None
    document: dict[str, Any] | None = None
    log_slower: float = 0.0
    is_out_of_budget: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "settings": self.settings.to_json(),
            "seed": self.seed,
            "log_slower": self.log_slower,
            "is_met": self.is_met,
            "sla_probability": self.sla_probability,
            "reason": self.reason,
            "measured": self.document,
        }


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The settings to run ``model`` with, and everything that speaks for them.

    ``model`` has its sizes, ``predicted`` are simulated metrics, ``measured`` a whole measurement
    document or None; ``point`` is what the choice was made on, ``probability`` its P(SLA met),
    ``launch`` how to serve with the settings, ``cost`` what that costs where a price is known,
    ``capacity_table`` what rate each plan carries, where that was asked for. ``expected_steps`` are
    those of the simulation, by mode and size: what live ones are compared with.
    """

    settings: Settings
    model: dict[str, Any]
    fidelity: Fidelity
    predicted: dict[str, Any]
    predicted_point: OperatingPoint
    surrogate_point: OperatingPoint | None
    measured: dict[str, Any] | None
    point: OperatingPoint
    paced: dict[str, Any] | None
    reason: ChoiceReason
    why: str
    explanation: str
    probability: float
    schedule: Schedule
    launch: tuple[LaunchCommand, ...]
    cost: dict[str, float | None] | None
    capacity_table: CapacityTable | None
    expected_steps: tuple[StepSum, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "settings": self.settings.to_json(),
            "num_devices": self.settings.plan.world_size,
            "model": self.model,
            "fidelity": self.fidelity.value,
            "predicted": self.predicted,
            "measured": self.measured["metrics"] if self.measured else None,
            "measured_requests": self.measured["requests"] if self.measured else None,
            "measured_energy": self.measured.get("energy") if self.measured else None,
            "paced": self.paced,
            "interval": self._intervals(),
            "sla_probability": self.probability,
            "reason": self.reason.value,
            "why": self.why,
            "explanation": self.explanation,
            "launch": [command.to_json() for command in self.launch],
            "cost": self.cost,
            "capacity_table": self.capacity_table.to_json() if self.capacity_table else None,
            "expected_steps": [steps.to_json() for steps in self.expected_steps],
        }

    def _intervals(self) -> dict[str, EstimateJson]:
        """What each fidelity says of the settings; one number per fidelity and metric."""
        points = [self.surrogate_point, self.predicted_point, self.point]
        return {p.fidelity.value: estimates_to_json(p.metrics) for p in points if p is not None}


@dataclass(frozen=True, kw_only=True)
class TuningReport:
    """Everything a tuning job found out. ``recommendation`` None: nothing meets the SLA.

    ``demoted`` are winners that lost their place, and why; ``costs`` what all levels took;
    ``budget`` what was asked, used and not reached for it, None without one.
    """

    recommendation: Recommendation | None
    trials: tuple[TrialRecord, ...]
    pruned: tuple[PrunedPlan, ...]
    confirmations: tuple[Confirmation, ...]
    alternatives: dict[str, dict[str, Any]]
    simulated: tuple[dict[str, Any], ...]
    infeasible: dict[str, Any] | None
    workload: dict[str, Any]
    spec: TuningSpec
    title: Title
    cost_model: dict[str, Any]
    warnings: tuple[str, ...]
    steps: dict[str, Any] | None
    fresh: FreshDraws | None = None
    demoted: tuple[dict[str, Any], ...] = ()
    costs: tuple[Cost, ...] = ()
    budget: dict[str, Any] | None = None

    @property
    def _is_trade(self) -> bool:
        return self.spec.goal.objective is Objective.PARETO

    @property
    def headline(self) -> str:
        """One line that says what came out."""
        if self.recommendation is None:
            assert self.infeasible is not None, "no recommendation without a reason"
            return infeasible_text(self.infeasible)
        found = self.recommendation
        chance = f"P(SLA met) {found.probability:.2f}"
        return f"{found.settings} ({found.fidelity}, {chance}): {found.explanation}"

    def to_json(self) -> dict[str, Any]:
        """The document that ``tune --out`` writes."""
        found = self.recommendation
        return {
            "schema": SCHEMA,
            "title": str(self.title),
            "recommendation": found.to_json() if found else None,
            "schedule": found.schedule.to_json() if found else None,
            "alternatives": self.alternatives,
            "infeasible": self.infeasible,
            "baseline": self.trials[0].to_json() if self.trials else None,
            "trials": [trial.to_json() for trial in self.trials],
            "trade": pareto_json(self.trials, self.spec.parsed_sla) if self._is_trade else None,
            "fresh_draws": self.fresh.to_json() if self.fresh else None,
            "demoted": list(self.demoted),
            "costs": costs_json(self.costs),
            "budget": self.budget,
            "confirmations": [confirmation.to_json() for confirmation in self.confirmations],
            "pruned": [asdict(plan) for plan in self.pruned],
            "simulated": list(self.simulated),
            "workload": self.workload,
            "sla": self.spec.sla,
            "seed": self.spec.seed,
            "spec": self.spec.to_json(),
            "cost_model": self.cost_model,
            "steps": self.steps,
            "warnings": list(self.warnings),
        }


def point_json(point: OperatingPoint, sla: Sla) -> dict[str, Any]:
    """An operating point with its standing against the SLA."""
    return {
        "settings": point.settings.to_json(),
        "num_devices": point.cost_devices,
        "fidelity": point.fidelity.value,
        "metrics": estimates_to_json(point.metrics),
        "is_feasible": is_dependable(point, sla),
        "headroom": finite(point.headroom(sla)),
        "has_interval": point.has_interval,
        # Without an interval, certainty is not known.
        "sla_probability": point.probability(sla) if point.has_interval else None,
    }


def infeasible_json(selection: Selection, sla: Sla) -> dict[str, Any]:
    """The near miss, what stands in the way, and what relaxing each constraint alone would take."""
    return {
        "reason": selection.reason.value,
        "min_probability": MIN_CHANCE,
        "binding": str(selection.binding) if selection.binding else None,
        "closest": point_json(selection.closest, sla) if selection.closest else None,
        "relaxations": [
            {
                "constraint": str(r.constraint),
                "bound": r.bound,
                "relaxed": r.relaxed,
                "price": r.price,
                "settings": r.point.settings.to_json() if r.point else None,
            }
            for r in selection.relaxations
        ],
    }


def infeasible_text(infeasible: dict[str, Any]) -> str:
    """The same in one line: the verdict, what binds, and the near miss with its P."""
    parts = [f"nothing meets the SLA with P of at least {infeasible['min_probability']:g}"]
    if infeasible["binding"] is not None:
        parts.append(f"binding is {infeasible['binding']}")
    if (closest := infeasible["closest"]) is not None:
        chance = closest["sla_probability"]
        known = "P unknown" if chance is None else f"P(SLA met) {chance:.2f}"
        settings = Settings.from_json(closest["settings"])
        parts.append(f"nearest is {settings} ({closest['fidelity']}, {known})")
    return "; ".join(parts)
