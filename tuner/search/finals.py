"""The end of a search: the best measured again, compared on fresh draws, and what that took.

What a budget has no time for is left out, and said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.spec.settings import Settings
from policies.points import OperatingPoint
from policies.select import PointRejection, Rejected, Selection
from policies.verdict import is_dependable
from tuner.search.budget import NOT_IN_BUDGET
from tuner.search.capacity import FoundTable, find_capacity_table
from tuner.search.confirm import confirm
from tuner.search.context import TuningContext
from tuner.search.costs import Cost
from tuner.search.fresh import FreshDraws
from tuner.search.fresh_runs import FreshRuns
from tuner.search.live_capacity import Driver
from tuner.search.promotion import is_beaten
from tuner.search.remaining_budget import RemainingBudget
from tuner.search.report import Confirmation
from tuner.search.trials import TrialRecord

# How many winners may miss the SLA on simulated draws before one is recommended with a warning.
MAX_MISSED = 3


@dataclass(kw_only=True)
class Finals:
    """What was done and found after the last trial. ``chosen`` is the selection after winner and
    runner-up were compared; None while they were not."""

    context: TuningContext
    trials: Sequence[TrialRecord]
    is_cancelled: Callable[[], bool]
    confirmations: list[Confirmation] = field(default_factory=list)
    demoted: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    fresh: FreshDraws | None = None
    chosen: Selection | None = None
    _not_reached: list[str] = field(default_factory=list)
    _runs: FreshRuns = field(init=False)
    _budget: RemainingBudget = field(init=False)

    def __post_init__(self) -> None:
        self._budget = RemainingBudget(context=self.context, trials=self.trials, is_final=True)
        self._runs = FreshRuns(
            context=self.context, budget=self._budget, is_cancelled=self.is_cancelled
        )

    def confirm(self, settings: Settings) -> Confirmation | None:
        """Measure ``settings`` on the whole workload; None where that was cancelled or too dear."""
        context = self.context
        nth = len(self.confirmations)
        again = confirm(context, settings, nth, self._budget, self.is_cancelled)
        if again.is_out_of_budget:
            self._not_reached.append(f"{settings} was not measured again: {again.reason}")
            return None
        if again.point is None and self.is_cancelled():
            self.warnings.append(f"{settings} was not measured again: the job was cancelled")
            return None
        self.confirmations.append(again)
        return again

    def demote(self, settings: Settings, reason: str) -> None:
        """Note that ``settings`` lost the first place."""
        self.demoted.append({"settings": settings.to_json(), "reason": reason})
        self.context.emit("demoted", f"{settings}: {reason}")

    def compare_live(self, selection: Selection) -> None:
        """Compare a winner that was measured again; the runner-up takes its place only where it
        passes the same measurement."""
        self.chosen = selection
        other = self._runner_up(selection)
        if (why := self._compare(selection, other)) is None or other is None:
            return
        if self.context.can_run(other.settings.plan):
            again = self.confirm(other.settings)
            if again is None or again.point is None or not again.is_met:
                return
            other = again.point
        self._replace(selection, other, why)

    def compare_simulated(self, selection: Selection) -> OperatingPoint | None:
        """Compare a simulated winner. Returns what the draws say of one that missed the SLA in most
        of them, so that another be chosen; None where the choice is made."""
        self.chosen = selection
        if selection.best is None:
            return None
        other = self._runner_up(selection)
        why = self._compare(selection, other)
        assert self.fresh is not None, "the draws were just made"
        if why is None:
            return None
        if self.fresh.is_missed:
            if len(self.demoted) < MAX_MISSED:
                self.demote(selection.best.settings, why)
                return self.fresh.winner_overall
            self.warnings.append(f"{selection.best.settings}: {why}")
        elif other is not None:
            self._replace(selection, other, why)
        return None

    def find_capacity_table(self, recommended: Settings) -> FoundTable | None:
        """What plans carry, measured as far as the budget goes; None where nobody asked."""
        if not self.context.spec.capacity_table:
            return None
        driver = Driver(context=self.context, budget=self._budget, is_cancelled=self.is_cancelled)
        return find_capacity_table(self.context, recommended, driver)

    @property
    def all_costs(self) -> tuple[Cost, ...]:
        """The costs of the design, of trials and of the finals."""
        return self._budget.costs

    def budget_json(self) -> dict[str, Any] | None:
        """What was asked, what was used of it, and what was not reached; None without a budget."""
        budget = self.context.spec.time_budget
        if budget is None:
            return None
        return {
            "asked": self.context.spec.budget,
            **budget.used_json(self._budget.spent_s(budget)),
            "not_reached": [*self._trials_not_run(), *self._not_reached],
        }

    def _trials_not_run(self) -> list[str]:
        short = [trial for trial in self.trials if trial.is_short_of_budget]
        if not short:
            return []
        numbers = ", ".join(str(trial.number) for trial in short)
        why = short[-1].reason.removeprefix(NOT_IN_BUDGET)
        return [
            f"{len(short)} of {len(self.trials)} trials were not run ({numbers}); for the last the "
            f"budget{why}"
        ]

    def _compare(self, selection: Selection, other: OperatingPoint | None) -> str | None:
        """Why the winner should lose its place on fresh draws; None where it should not."""
        assert selection.best is not None, "only a winner is compared"
        ran = [trial for trial in self.trials[:1] if trial.point is not None]
        baseline = ran[0].settings if ran else None
        self.fresh = self._runs.run(selection.best, other, baseline)
        self._not_reached += self.fresh.not_reached
        return self.fresh.why_demote

    def _replace(self, selection: Selection, other: OperatingPoint, why: str) -> None:
        """The runner-up takes the winner's place."""
        winner = selection.best
        assert winner is not None, "there is a place to take"
        self.demote(winner.settings, why)
        self._compare(replace(selection, best=other), winner)
        left = (r for r in selection.rejected if r.point.settings != other.settings)
        behind = Rejected(point=winner, why=PointRejection.WORSE_ON_FRESH_DRAWS, detail=why)
        self.chosen = replace(
            selection,
            best=other,
            probability=other.probability(self.context.sla),
            rejected=(behind, *left),
        )

    def _runner_up(self, selection: Selection) -> OperatingPoint | None:
        """The next best that would do, if its interval still reaches the winner's."""
        context, winner = self.context, selection.best
        assert winner is not None, "a runner-up comes behind a winner"
        points = [
            rejected.point
            for rejected in selection.rejected
            if rejected.why is not PointRejection.LOW_THRESHOLD_WITHOUT_GAIN
            and rejected.point.settings != winner.settings
            and is_dependable(rejected.point, context.sla)
        ]
        objective = selection.objective
        found = min(points, key=lambda point: objective.order(point, context.sla), default=None)
        if found is None:
            return None
        if not found.has_interval:  # one of the design, simulated once
            found = context.simulator.point(found.settings, context.trial_workload)
        return None if is_beaten(found, winner, context.sla, objective) else found
