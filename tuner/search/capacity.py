"""The capacity table of a tuning job: what rate the plans of its design carry within the SLA."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.capacity_table import CapacityTable, CarriedRate
from policies.verdict import is_dependable
from tuner.capacity.learned import below, corrected
from tuner.capacity.probe import CapacityQuestion, Run, load_at, point_under
from tuner.capacity.search import limits_of
from tuner.capacity.table import (
    MOST_NEAR,
    NEAR,
    Standing,
    check_has_table,
    climb,
    entry_of,
    near,
    table_of,
    worth_fitting,
)
from tuner.search.context import TuningContext
from tuner.search.live_capacity import Driven
from tuner.simulation.simulate import OnProgress
from tuner.step_model.timer import StepScale
from tuner.workload.workload import Workload

# If plans are driven afterwards, up to MOST_LIVE are kept that carry this share of the best by
# simulation, which knows nothing of what else runs on the same cores.
LIVE_SHARE = 0.6
MOST_LIVE = 6


@dataclass(frozen=True, kw_only=True)
class FoundTable:
    """The table, and what an operator should know of how it was found."""

    table: CapacityTable
    warnings: tuple[str, ...] = ()


class Drives(Protocol):
    """Measures what entries carry when served (:class:`tuner.search.live_capacity.Driver`)."""

    @property
    def notes(self) -> Sequence[str]:
        """What was not driven, and why."""
        ...

    def drive(self, expected: CarriedRate) -> Driven | None:
        """Drive one entry's settings; None where they cannot be, or are not worth it."""
        ...


def find_capacity_table(
    context: TuningContext, recommended: Settings, driver: Drives
) -> FoundTable:
    """Find the settings of each plan of the design that carry most, by simulation with what trials
    have taught it; the settings with most headroom at the asked load may carry less than others.

    What can run here is driven as long as the table would offer it: first what is ``recommended``,
    then each entry. Entries that are not driven are corrected by those that were
    (:mod:`tuner.capacity.learned`), so another plan may take an entry's place and is driven next.
    The table also tells what the recommended settings carry if other plans carry more: an engine
    that runs them has to know when they will not do.

    Raises:
        TunerError: the workload has no rate.
    """
    check_has_table(context.workload)
    simulated = _simulated(context, recommended)
    driven: dict[ParallelPlan, Driven | None] = {}
    while True:
        known = _known(context, simulated, driven)
        table = table_of(context.workload, context.sla, known.values(), beside=recommended.plan)
        offered = [recommended.plan, *(entry.settings.plan for entry in table.entries)]
        plan = next((p for p in offered if p in known and p not in driven), None)
        if plan is None:
            break
        driven[plan] = driver.drive(known[plan])
    own = known.get(recommended.plan)
    if table.find(recommended.plan) is None and own is not None:
        table = replace(table, others=(own,))
    return FoundTable(table=table, warnings=(*driver.notes, *_unseen(context, table)))


def _simulated(context: TuningContext, recommended: Settings) -> dict[ParallelPlan, CarriedRate]:
    """What plans that are worth an entry carry by simulation, and the recommended one."""
    found = [_climb(context, options) for options in _options_by_plan(context, recommended)]
    standings = [standing for standing in found if standing is not None]
    is_driven = context.max_live_ranks > 0 and context.spec.capacity_seconds > 0
    share, most = (LIVE_SHARE, MOST_LIVE) if is_driven else (NEAR, MOST_NEAR)
    worth = worth_fitting(standings, beside=recommended.plan, share=share, most=most)
    if recommended.plan not in {standing.settings.plan for standing in worth}:
        own = _near(context, recommended)
        worth += [] if own is None else [own]
    entries = [_entry(context, standing) for standing in worth]
    return {entry.settings.plan: entry for entry in entries if entry is not None}


def _known(
    context: TuningContext,
    simulated: Mapping[ParallelPlan, CarriedRate],
    driven: Mapping[ParallelPlan, Driven | None],
) -> dict[ParallelPlan, CarriedRate]:
    """What each plan carries, as far as is known by now."""
    told = {plan: found for plan, found in driven.items() if found is not None}
    ratios = {
        plan: ratio
        for plan, found in told.items()
        if (ratio := _log_ratio(simulated[plan], found)) is not None
    }
    known: dict[ParallelPlan, CarriedRate] = {}
    for plan, entry in simulated.items():
        believed = corrected(entry, ratios, doubt=context.simulator.interval)
        found = told.get(plan)
        if found is not None:
            believed = found.entry or below(believed, found.least_rps)
        known[plan] = believed
    return known


def _log_ratio(simulated: CarriedRate, found: Driven) -> float | None:
    """log(measured / simulated); None: the run tells only on which side of it that is."""
    entry = found.entry
    if entry is None:
        ratio = math.log(found.least_rps / simulated.rate_rps)
        return min(ratio, 0.0)
    ratio = math.log(entry.rate_rps / simulated.rate_rps)
    return None if entry.high_rps is None and ratio < 0 else ratio


def _unseen(context: TuningContext, table: CapacityTable) -> list[str]:
    """A warning about entries that could have been run here, but were not."""
    if context.hardware is not None and not context.max_live_ranks:
        return []  # nobody takes any of what is described for one plan alone
    names = [
        str(entry.settings.plan)
        for entry in table.entries
        if entry.fidelity is not Fidelity.MEASURED
    ]
    if not names:
        return []
    return [
        f"capacity table: {', '.join(names)} simulated, not run: what front end and clients take "
        "of this machine is in it only as far as runs of other plans showed"
    ]


def _climb(context: TuningContext, options: Sequence[Settings]) -> Standing | None:
    limits = limits_of(context.workload)
    return climb(options, lambda s, at: _passes(context, s, at), limits)


def _near(context: TuningContext, settings: Settings) -> Standing | None:
    limits = limits_of(context.workload)
    guess = Standing(settings=settings, factor=1.0)
    return near(guess, lambda s, at: _passes(context, s, at), limits)


def _entry(context: TuningContext, standing: Standing) -> CarriedRate | None:
    return entry_of(_asked(context, standing.settings), standing, lambda _: None)


def _options_by_plan(context: TuningContext, recommended: Settings) -> list[list[Settings]]:
    """The settings of each plan, those with most headroom at the asked load first; of its own plan
    first what is ``recommended``: caps that never bind carry as much, and an engine would change to
    them under more load for nothing. :func:`tuner.capacity.table.climb` wants others to carry
    more."""
    options = {recommended.plan: [recommended]}
    ranked = sorted(context.design.values(), key=lambda point: -point.headroom(context.sla))
    for point in ranked:
        if point.settings != recommended and not point.runs_full_decodes_in_base:
            options.setdefault(point.settings.plan, []).append(point.settings)
    return list(options.values())


def _passes(context: TuningContext, settings: Settings, factor: float) -> bool:
    asked = _asked(context, settings)
    return is_dependable(point_under(asked, load_at(asked, factor, 0)), context.sla)


def _asked(context: TuningContext, settings: Settings) -> CapacityQuestion:
    def run_on(load: Workload, step_scale: float, _: OnProgress) -> Run:
        return context.simulator.result(settings, load, StepScale().times(step_scale))

    return CapacityQuestion(
        settings=settings,
        run_on=run_on,
        workload=context.workload,
        sla=context.sla,
        interval=context.simulator.interval,
    )
