"""Pictures of single runs: simulated, and measured by ``bench``."""

from __future__ import annotations

from engine.spec.measurement import Measurement
from engine.spec.settings import Settings
from policies.constraint import Metric, Percentile
from policies.numbers import short
from policies.points import EstimateJson
from policies.sla import Sla
from tuner.described.document import timelines
from tuner.described.title import Title
from tuner.pictures.over_time import (
    attainment_panel,
    distribution_panel,
    latency_panels,
    load_panel,
    mode_panel,
    queue_panel,
)
from tuner.pictures.picture import Band, Colour, Picture
from tuner.simulation.simulate import SimulationResult
from tuner.simulation.timeline import build_timeline

LATENCY_NAMES = {Metric.TTFT_MS: "TTFT", Metric.TPOT_MS: "TPOT", Metric.ITL_MS: "ITL"}


def simulated_picture(
    result: SimulationResult,
    *,
    title: Title,
    settings: Settings,
    intervals: EstimateJson | None,
) -> Picture:
    """A simulated run, with the intervals of its metrics where they are known."""
    sla = title.asked.sla
    timeline, steps = timelines(result)
    bands = _bands(intervals or {}, sla)
    attainment = () if sla is None else (attainment_panel(result.measurement, timeline, sla),)
    return Picture(
        title=f"{title.asked.model}, {settings}, simulated",
        facts=title.parts,
        panels=(
            load_panel(timeline),
            queue_panel(timeline),
            *latency_panels(result.measurement, timeline, sla, bands),
            *attainment,
            mode_panel(timeline, steps),
            distribution_panel(result.measurement, sla),
        ),
    )


def measured_picture(
    measurement: Measurement, sla: Sla | None, *, server: str, workload: str, seed: int
) -> Picture:
    """A run against ``server``, as in ``MODEL at URL``."""
    timeline = build_timeline(measurement)
    attainment = () if sla is None else (attainment_panel(measurement, timeline, sla),)
    bounds = "no SLA" if sla is None else f"SLA {sla}"
    return Picture(
        title=f"{server}, {measurement.fidelity.value}",
        facts=(f"workload {workload}", f"{bounds}; seed {seed}"),
        panels=(
            load_panel(timeline),
            queue_panel(timeline),
            *latency_panels(measurement, timeline, sla),
            *attainment,
            distribution_panel(measurement, sla),
        ),
    )


def _bands(intervals: EstimateJson, sla: Sla | None) -> tuple[Band, ...]:
    """The whole run's interval of each percentile that the SLA bounds; where it bounds none, of the
    p95."""
    constraints = sla.constraints if sla else ()
    found = []
    for metric, name in LATENCY_NAMES.items():
        bounded = [c.percentile for c in constraints if c.metric is metric and c.percentile]
        for percentile in bounded or [Percentile.P95]:
            ends = intervals.get(f"{percentile}_{metric}", {})
            low, high = ends.get("low"), ends.get("high")
            if low is not None and high is not None:
                interval = f"{short(low)} .. {short(high)} ms"
                text = f"{percentile} {name} of the run, 90 % interval {interval}"
                found.append(Band(label=text, low=low, high=high, colour=Colour.PURPLE))
    return tuple(found)
