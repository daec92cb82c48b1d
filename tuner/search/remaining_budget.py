"""How much of a job's time is left, and whether the next live run fits.

Nothing is started that would not fit. A run is expected to take as long as its load, by simulation
or by the times of its arrivals, plus the most that earlier runs took to start and warm up. One that
takes longer is ended when the budget is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.spec.settings import Settings
from tuner.search.budget import TimeBudget
from tuner.search.context import TuningContext
from tuner.search.costs import SPENT, Cost, Level
from tuner.search.live_run import load_s
from tuner.search.trials import TrialRecord
from tuner.workload.workload import Workload

# What the first start and warm-up are expected to take: of ranks here, of a server.
FIRST_START_S = 2.0
FIRST_SERVER_START_S = 30.0


@dataclass(frozen=True, kw_only=True)
class RemainingBudget:
    """The time that its budget leaves to a job after ``trials``, of devices or by the clock.
    ``is_final``: the share that is kept for measuring the best again may be used, too."""

    context: TuningContext
    trials: Sequence[TrialRecord]
    is_final: bool = False

    @property
    def costs(self) -> tuple[Cost, ...]:
        """Everything that was spent so far, in order."""
        of_trials = (cost for trial in self.trials for cost in trial.costs)
        context = self.context
        return (*context.design_costs, *of_trials, *context.final_costs, *context.meter.costs)

    @property
    def left_s(self) -> float | None:
        """Seconds of the budget that may still be used; None: as many as it takes."""
        budget = self._budget
        if budget is None:
            return None
        whole_s = budget.seconds if self.is_final else budget.for_trials_s
        return whole_s - self.spent_s(budget)

    def spent_s(self, budget: TimeBudget) -> float:
        """Seconds of it that are used, those of calls that were cut off included."""
        return sum(map(budget.taken_s, self.costs)) + budget.taken_s(self.context.spent_before)

    def allowed_s(self, settings: Settings) -> float | None:
        """Seconds that a run of ``settings`` may take; None: as long as it takes."""
        return None if self.left_s is None else self.left_s / self.taken_s(settings, 1.0)

    def taken_s(self, settings: Settings, seconds: float) -> float:
        """What a run of ``settings`` that lasts so long takes of the budget."""
        budget = self._budget
        return seconds if budget is None else budget.held_s(seconds, settings.plan.world_size)

    def why_not(self, needed_s: float) -> str | None:
        """Why runs that take ``needed_s`` of the budget are not started; None if they fit."""
        budget, left_s = self._budget, self.left_s
        return None if budget is None or left_s is None else budget.why_not(left_s, needed_s)

    def why_not_run(self, settings: Settings, workload: Workload) -> str | None:
        """Why a live run is not started; None where it fits."""
        if self.left_s is None:  # then nothing need be simulated for it
            return None
        return self.why_not(self.expected_s(settings, workload))

    def expected_s(self, settings: Settings, workload: Workload) -> float:
        """What a live run is expected to take of the budget."""
        first_s = FIRST_SERVER_START_S if self.context.spec.is_served else FIRST_START_S
        seen = [c.seconds - c.load_s for c in self.costs if c.is_live and c.load_s > 0]
        beside_s = max(seen, default=first_s)
        return self.taken_s(settings, beside_s + self._load_s(settings, workload))

    def pay(self, cost: Cost, settings: Settings) -> None:
        """Note what a live run after the last trial took, for the report and for whoever goes on
        with the job after a crash."""
        self.context.final_costs.append(cost)
        self.context.emit(
            SPENT,
            f"{settings}: {cost.device_seconds:.0f} device seconds ({cost.level})",
            level=cost.level.value,
            seconds=cost.seconds,
            device_seconds=cost.device_seconds,
        )

    @property
    def _budget(self) -> TimeBudget | None:
        return self.context.spec.time_budget

    def _load_s(self, settings: Settings, workload: Workload) -> float:
        """For a closed loop that cannot be simulated, only earlier runs tell; the first one is let
        through."""
        context = self.context
        if not context.simulator.is_blind:
            return load_s(context.simulator.run(settings, workload))
        if workload.closed is None:
            return workload.span_s
        seen = [cost.load_s for cost in self.costs if cost.level is Level.PROBED]
        return max(seen, default=0.0) * len(workload) / len(context.trial_workload)
