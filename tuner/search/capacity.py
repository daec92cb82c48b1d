"""The capacity table of a tuning job: what rate the plans of its design carry within the SLA."""

from __future__ import annotations

from dataclasses import dataclass

from engine.spec.measurement import Measurement
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.capacity_table import CapacityTable
from policies.verdict import is_dependable
from tuner.capacity.probe import Asked, Run, load_at, point_under
from tuner.capacity.search import limits_of
from tuner.capacity.table import Standing, check_has_table, entry_of, near, table_of, worth_fitting
from tuner.search.context import TuningContext
from tuner.simulation.simulate import OnProgress
from tuner.step_model.timer import StepScale
from tuner.workload.workload import Workload


@dataclass(frozen=True, kw_only=True)
class _Run:
    measurement: Measurement


def find_capacity_table(context: TuningContext) -> CapacityTable:
    """Of each plan of the design the best settings, by simulation with what trials have taught it.

    Raises:
        TunerError: the workload has no rate.
    """
    check_has_table(context.workload)
    limits = limits_of(context.workload)
    found = [
        near(Standing(settings=settings, factor=1.0), lambda s, at: _passes(context, s, at), limits)
        for settings in _best_of_each_plan(context)
    ]
    worth = worth_fitting(standing for standing in found if standing is not None)
    entries = [entry_of(_asked(context, s.settings), s, lambda _: None) for s in worth]
    return table_of(context.workload, context.sla, entries)


def _best_of_each_plan(context: TuningContext) -> list[Settings]:
    ranked = sorted(context.design.values(), key=lambda point: -point.headroom(context.sla))
    best: dict[ParallelPlan, Settings] = {}
    for point in ranked:
        if not point.runs_full_decodes_in_base:
            best.setdefault(point.settings.plan, point.settings)
    return list(best.values())


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
