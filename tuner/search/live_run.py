"""One live run of a search: watched, within the budget, and with what it took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.spec.errors import EngineError
from engine.spec.measurement import Fidelity, Measurement
from engine.spec.settings import Settings
from tuner.search.context import TuningContext
from tuner.search.costs import Cost, Level, Meter
from tuner.search.trials import CUT_SHORT
from tuner.search.watch import LiveWatch
from tuner.workload.workload import Workload


@dataclass(frozen=True, kw_only=True)
class LiveRun:
    """The result of a run. ``measurement`` None: it told nothing, for the ``reason``. Otherwise, a
    ``reason`` says why it was stopped as hopeless, and the measurement is of the part that ran."""

    cost: Cost
    measurement: Measurement | None = None
    reason: str | None = None
    is_out_of_budget: bool = False


def run_live(
    context: TuningContext,
    settings: Settings,
    workload: Workload,
    *,
    seed: int,
    fidelity: Fidelity,
    allowed_s: float | None = None,
    is_judged: bool = True,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> LiveRun:
    """Run ``workload`` under ``settings`` until it ends, is hopeless or cancelled, or until
    ``allowed_s`` seconds (None: no limit) are used.

    ``is_judged`` False: its numbers are wanted however far it misses the SLA.
    """
    watch = LiveWatch(
        context.sla if is_judged else None,
        len(workload),
        allowed_s=allowed_s,
        is_cancelled=is_cancelled,
    )
    meter, measurement, failed = Meter(), None, None
    with meter.timing(Level(fidelity.value), num_devices=settings.plan.world_size):
        try:
            measurement = context.live.measure(
                settings,
                workload,
                seed=seed,
                timeout_s=context.spec.timeout_s,
                fidelity=fidelity,
                on_ended=watch.hear,
                should_stop=watch.should_stop,
            )
        except EngineError as error:
            context.close()
            failed = str(error)
    (cost,) = meter.taken()
    context.keep_steps()
    if is_cancelled():
        return LiveRun(cost=cost, reason=CUT_SHORT)
    if watch.stopped is not None and watch.hopeless is None:
        return LiveRun(cost=cost, reason=watch.stopped, is_out_of_budget=True)
    if measurement is None:
        return LiveRun(cost=cost, reason=failed)
    cost = replace(cost, load_s=load_s(measurement))
    return LiveRun(cost=cost, measurement=measurement, reason=watch.stopped)


def load_s(measurement: Measurement) -> float:
    """From the start of the load to its last token; both clocks of timings begin at its start."""
    return max(
        timing.token_s[-1] if timing.token_s else timing.scheduled_s
        for timing in measurement.timings
    )
