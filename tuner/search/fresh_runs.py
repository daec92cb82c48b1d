"""Measuring the winner, the runner-up and trial 0 on the same fresh draws of the load."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.points import Estimate, OperatingPoint
from policies.report import flat_metrics
from tuner.search.context import WHOLE_REQUESTS, TuningContext
from tuner.search.costs import Level
from tuner.search.fresh import Drawn, FreshDraws, Role
from tuner.search.live_run import run_live
from tuner.search.remaining_budget import RemainingBudget
from tuner.workload.slices import head
from tuner.workload.stretch import stretch
from tuner.workload.workload import Workload

FRESH_SEED = 104_729
LIVE_DRAWS = 3
SIMULATED_DRAWS = 4
# With fewer draws a difference has no interval.
LEAST_DRAWS = 2
# What is done instead where the budget does not hold all of it: who takes part, in how many draws.
ALL = (Role.WINNER, Role.RUNNER_UP, Role.BASELINE)
PAIR = (Role.WINNER, Role.BASELINE)
SCOPES = tuple(product((ALL, PAIR), range(LIVE_DRAWS, LEAST_DRAWS - 1, -1)))


@dataclass(kw_only=True)
class FreshRuns:
    """Runs of one job on its fresh draws; settings that were drawn once are not run again."""

    context: TuningContext
    budget: RemainingBudget
    is_cancelled: Callable[[], bool]
    _seen: dict[tuple[Settings, int, Fidelity], OperatingPoint] = field(default_factory=dict)

    def run(
        self, winner: OperatingPoint, runner_up: OperatingPoint | None, baseline: Settings | None
    ) -> FreshDraws:
        """The winner beside the runner-up, and beside trial 0 unless that is the winner.

        Live where all of them can run here, else simulated.
        """
        roles = {Role.WINNER: Drawn(settings=winner.settings, chosen_by=winner)}
        if runner_up is not None:
            roles[Role.RUNNER_UP] = Drawn(settings=runner_up.settings, chosen_by=runner_up)
        if baseline is not None and baseline != winner.settings:
            roles[Role.BASELINE] = Drawn(settings=baseline)
        context = self.context
        if not all(context.can_run(drawn.settings.plan) for drawn in roles.values()):
            return self._simulated(roles)
        if len(roles) == 1:  # there is nothing to compare it with
            return self._found(roles, Fidelity.PROBED, 0, len(context.trial_workload))
        return self._live(roles)

    def _simulated(self, roles: dict[Role, Drawn]) -> FreshDraws:
        context = self.context
        with context.meter.timing(Level.SIMULATED):
            for draw, drawn in product(range(SIMULATED_DRAWS), roles.values()):
                key = (drawn.settings, draw, Fidelity.SIMULATED)
                if key not in self._seen:
                    load = head(self._draw(draw), WHOLE_REQUESTS)
                    self._seen[key] = context.simulator.quick_point(drawn.settings, load)
                drawn.points[draw] = self._seen[key]
        context.final_costs += context.meter.taken()
        return self._found(roles, Fidelity.SIMULATED, SIMULATED_DRAWS, WHOLE_REQUESTS)

    def _live(self, roles: dict[Role, Drawn]) -> FreshDraws:
        context = self.context
        loads = [head(self._draw(draw), len(context.trial_workload)) for draw in range(LIVE_DRAWS)]
        wanted, num_draws, not_reached = self._scope(roles, loads)
        for role, draw in self._order(list(wanted), num_draws):
            drawn = wanted[role]
            key = (drawn.settings, draw, Fidelity.PROBED)
            if key not in self._seen and not self.is_cancelled() and drawn.reason is None:
                self._measure(drawn, draw, loads[draw])
            if key in self._seen:
                drawn.points[draw] = self._seen[key]
        failed = [f"{d.settings} on fresh draws: {d.reason}" for d in wanted.values() if d.reason]
        return self._found(
            wanted,
            Fidelity.PROBED,
            num_draws,
            len(context.trial_workload),
            (*not_reached, *failed),
        )

    def _measure(self, drawn: Drawn, draw: int, load: Workload) -> None:
        context = self.context
        context.emit("measuring", f"{drawn.settings}: fresh draw {draw + 1}")
        run = run_live(
            context,
            drawn.settings,
            load,
            seed=context.spec.seed + FRESH_SEED + draw,
            fidelity=Fidelity.PROBED,
            allowed_s=self.budget.allowed_s(drawn.settings),
            is_judged=False,
            is_cancelled=self.is_cancelled,
        )
        self.budget.pay(run.cost, drawn.settings)
        if run.measurement is None:
            drawn.reason = run.reason
            return
        flat = flat_metrics(run.measurement, context.sla)
        self._seen[drawn.settings, draw, Fidelity.PROBED] = OperatingPoint(
            settings=drawn.settings,
            fidelity=Fidelity.PROBED,
            metrics={key: Estimate.exact(value) for key, value in flat.items()},
        )

    def _scope(
        self, roles: dict[Role, Drawn], loads: Sequence[Workload]
    ) -> tuple[dict[Role, Drawn], int, tuple[str, ...]]:
        """Who is run in how many draws, as the budget allows, and what is not reached for it."""
        if self.budget.left_s is None:
            return roles, LIVE_DRAWS, ()
        why: str | None = None
        for kept, num_draws in SCOPES:
            wanted = {role: drawn for role, drawn in roles.items() if role in kept}
            needed_s = self._needed_s(wanted, loads[:num_draws])
            missing = self.budget.why_not(needed_s) if needed_s else None
            if missing is None and len(wanted) > 1:
                is_all = len(wanted) == len(roles)
                left_out = () if is_all else (f"the runner-up on fresh draws was {why}",)
                return wanted, num_draws, left_out
            why = why or missing
        winner = {Role.WINNER: roles[Role.WINNER]}
        return winner, 0, (f"the gain over trial 0 on fresh draws was {why}",)

    def _needed_s(self, roles: dict[Role, Drawn], loads: Sequence[Workload]) -> float:
        return sum(
            self.budget.expected_s(drawn.settings, load)
            for drawn in roles.values()
            for draw, load in enumerate(loads)
            if (drawn.settings, draw, Fidelity.PROBED) not in self._seen
        )

    def _order(self, roles: list[Role], num_draws: int) -> Iterator[tuple[Role, int]]:
        """Draw after draw, each beginning with another, so that a machine that slows down does so
        for all; a server starts anew for each setting, so there setting after setting."""
        if self.context.spec.is_served:
            yield from ((role, draw) for role in roles for draw in range(num_draws))
            return
        for draw in range(num_draws):
            first = draw % len(roles)
            yield from ((role, draw) for role in (*roles[first:], *roles[:first]))

    def _draw(self, draw: int) -> Workload:
        return stretch(self.context.workload, 1.0, seed=FRESH_SEED + draw)

    def _found(
        self,
        runs: dict[Role, Drawn],
        fidelity: Fidelity,
        num_draws: int,
        most_requests: int,
        not_reached: tuple[str, ...] = (),
    ) -> FreshDraws:
        context = self.context
        return FreshDraws(
            sla=context.sla,
            objective=context.spec.goal.objective,
            fidelity=fidelity,
            num_draws=num_draws,
            num_requests=min(most_requests, len(context.workload)),
            runs=runs,
            not_reached=not_reached,
        )
