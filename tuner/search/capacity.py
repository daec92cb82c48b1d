"""The capacity table of a tuning job: what rate the plans of its design carry within the SLA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.spec.measurement import Measurement
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.capacity_table import CapacityTable, CarriedRate
from policies.verdict import is_dependable
from tuner.capacity.probe import Asked, Run, load_at, point_under
from tuner.capacity.search import limits_of
from tuner.capacity.table import (
    Standing,
    check_has_table,
    climb,
    entry_of,
    near,
    table_of,
    worth_fitting,
)
from tuner.search.context import TuningContext
from tuner.simulation.simulate import OnProgress
from tuner.step_model.timer import StepScale
from tuner.workload.workload import Workload


@dataclass(frozen=True, kw_only=True)
class _Run:
    measurement: Measurement


def find_capacity_table(context: TuningContext, recommended: Settings) -> CapacityTable:
    """Of each plan of the design the settings that carry most, by simulation with what trials have
    taught it: those with most headroom at the asked load may carry less than others.

    What the ``recommended`` settings carry is told, too, where other plans carry more: an engine
    that runs them has to know when they will not do.

    Raises:
        TunerError: the workload has no rate.
    """
    check_has_table(context.workload)
    found = [_climb(context, options) for options in _options_by_plan(context)]
    worth = worth_fitting(standing for standing in found if standing is not None)
    table = table_of(context.workload, context.sla, [_entry(context, s) for s in worth])
    if table.find(recommended.plan) is not None:
        return table
    standing = _near(context, recommended)
    own = None if standing is None else _entry(context, standing)
    return table if own is None else replace(table, others=(own,))


def _climb(context: TuningContext, options: Sequence[Settings]) -> Standing | None:
    limits = limits_of(context.workload)
    return climb(options, lambda s, at: _passes(context, s, at), limits)


def _near(context: TuningContext, settings: Settings) -> Standing | None:
    limits = limits_of(context.workload)
    guess = Standing(settings=settings, factor=1.0)
    return near(guess, lambda s, at: _passes(context, s, at), limits)


def _entry(context: TuningContext, standing: Standing) -> CarriedRate | None:
    return entry_of(_asked(context, standing.settings), standing, lambda _: None)


def _options_by_plan(context: TuningContext) -> list[list[Settings]]:
    """The settings of each plan, those first that have most headroom at the asked load."""
    ranked = sorted(context.design.values(), key=lambda point: -point.headroom(context.sla))
    options: dict[ParallelPlan, list[Settings]] = {}
    for point in ranked:
        if not point.runs_full_decodes_in_base:
            options.setdefault(point.settings.plan, []).append(point.settings)
    return list(options.values())


def _passes(context: TuningContext, settings: Settings, factor: float) -> bool:
    asked = _asked(context, settings)
    return is_dependable(point_under(asked, load_at(asked, factor, 0)), context.sla)


def _asked(context: TuningContext, settings: Settings) -> Asked:
    def run_on(load: Workload, step_scale: float, _: OnProgress) -> Run:
        return _Run(
            measurement=context.simulator.run(settings, load, StepScale().times(step_scale))
        )

    return Asked(
        settings=settings,
        run_on=run_on,
        workload=context.workload,
        sla=context.sla,
        interval=context.simulator.interval,
    )
