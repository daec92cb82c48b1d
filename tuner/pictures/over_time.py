"""Panels of one run, live or simulated: what was asked and what requests saw, over time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from engine.spec.measurement import Measurement, gaps_ms
from engine.spec.modes import BASE, SHIFT
from policies.constraint import Metric
from policies.sla import Sla
from tuner.pictures.picture import (
    Area,
    Axis,
    Band,
    Colour,
    Limit,
    Line,
    Panel,
    Values,
    axis_over,
    bounds_on,
)
from tuner.simulation.timeline import StepLine, Timeline, attainment_line, gap_percentiles

TIME_GROUP = "time"
MODE_COLOURS = {BASE: Colour.SKY, SHIFT: Colour.ORANGE}
# Of the rungs between, in turn.
RUNG_COLOURS = (Colour.GREEN, Colour.PURPLE)
# The most points that a curve of a distribution is drawn with.
CURVE_POINTS = 400
CURVES = (
    (Metric.TTFT_MS, "TTFT", Colour.BLUE),
    (Metric.TPOT_MS, "TPOT", Colour.ORANGE),
    (Metric.ITL_MS, "ITL", Colour.GREEN),
)


def time_axis(timeline: Timeline) -> Axis:
    """Seconds since the first arrival; latencies and attainment stand at their arrival."""
    ends = len(timeline.arrived) * timeline.bin_s
    return Axis(label="seconds since the first arrival", low=0.0, high=ends)


def load_panel(timeline: Timeline) -> Panel:
    """Requests that arrived and that finished, per second."""
    arrived = tuple(n / timeline.bin_s for n in timeline.arrived)
    finished = tuple(n / timeline.bin_s for n in timeline.finished)
    return _panel(
        timeline,
        "load, requests/s",
        (("arrived", arrived, Colour.BLUE), ("finished", finished, Colour.ORANGE)),
        is_step=True,
    )


def queue_panel(timeline: Timeline) -> Panel:
    """Requests without a first token yet, and those between their first token and their last."""
    return _panel(
        timeline,
        "requests in flight",
        (
            ("waiting for a first token", timeline.waiting, Colour.RED),
            ("running", timeline.running, Colour.BLUE),
        ),
        is_step=True,
    )


def latency_panels(
    measurement: Measurement, timeline: Timeline, sla: Sla | None, bands: Sequence[Band] = ()
) -> tuple[Panel, ...]:
    """TTFT, TPOT and ITL: p50 and p95 of each bin, bounds, and ``bands`` that begin as they do."""
    itl = [gap_percentiles(measurement, timeline, percent) for percent in (50, 95)]
    parts = (
        (Metric.TTFT_MS, "TTFT", timeline.ttft_p50_ms, timeline.ttft_p95_ms, "by arrival"),
        (Metric.TPOT_MS, "TPOT", timeline.tpot_p50_ms, timeline.tpot_p95_ms, "by arrival"),
        (Metric.ITL_MS, "ITL", itl[0], itl[1], "by when gaps ended"),
    )
    return tuple(
        _panel(
            timeline,
            f"{name}, ms",
            ((f"p50 {name} {at}", p50, Colour.BLUE), (f"p95 {name} {at}", p95, Colour.ORANGE)),
            limits=bounds_on(sla, metric),
            bands=tuple(band for band in bands if name in band.label.split()),
        )
        for metric, name, p50, p95, at in parts
    )


def attainment_panel(measurement: Measurement, timeline: Timeline, sla: Sla) -> Panel:
    """Share of the requests of each bin that met all bounds, and the bound on it."""
    values = attainment_line(measurement, timeline, sla)
    starts = timeline.starts_s
    return Panel(
        x=time_axis(timeline),
        y=Axis(label="attainment, share", low=0.0, high=1.05),
        lines=(Line(label="met by arrival", x=starts, y=values, colour=Colour.GREEN),),
        limits=bounds_on(sla, Metric.ATTAINMENT),
        x_group=TIME_GROUP,
    )


def mode_panel(timeline: Timeline, steps: StepLine) -> Panel:
    """Share of step time by mode, whose whole is in the legend, and KV blocks in use."""
    total = sum(map(sum, steps.busy_s.values()))
    rungs = [mode for mode in steps.busy_s if mode not in MODE_COLOURS]
    colours = MODE_COLOURS | dict(zip(rungs, itertools.cycle(RUNG_COLOURS), strict=False))
    areas = tuple(
        Area(
            label=f"{mode} mode, {100 * sum(busy_s) / total:.1f} % of all step time",
            x=timeline.starts_s,
            y=tuple(share or 0.0 for share in steps.share(mode)),
            colour=colours[mode],
        )
        for mode, busy_s in steps.busy_s.items()
        if sum(busy_s) > 0
    )
    usage = Line(
        label="KV cache in use", x=timeline.starts_s, y=steps.kv_usage, colour=Colour.BLACK
    )
    return Panel(
        x=time_axis(timeline),
        y=Axis(label="step time and KV, share", low=0.0, high=1.05),
        areas=areas,
        lines=(usage,),
        x_group=TIME_GROUP,
    )


def distribution_panel(measurement: Measurement, sla: Sla | None) -> Panel:
    """Share of requests (of gaps, for ITL) at or below each latency, with the bounds on it."""
    done = measurement.completed
    values: dict[Metric, list[float]] = {
        Metric.TTFT_MS: [v for t in done if (v := t.ttft_ms) is not None],
        Metric.TPOT_MS: [v for t in done if (v := t.tpot_ms) is not None],
        Metric.ITL_MS: gaps_ms(done).tolist(),
    }
    limits = tuple(
        Limit(label=limit.label, at=limit.at, is_upright=True, colour=colour)
        for metric, _, colour in CURVES
        for limit in bounds_on(sla, metric)
    )
    x = axis_over(
        "latency, ms", [v for own in values.values() for v in own], limits=[n.at for n in limits]
    )
    return Panel(
        x=x,
        y=Axis(label="share at or below", low=0.0, high=1.02),
        lines=tuple(
            _curve(name, values[metric], colour)
            for metric, name, colour in CURVES
            if values[metric]
        ),
        limits=limits,
    )


def _curve(name: str, values: list[float], colour: Colour) -> Line:
    shares = np.linspace(0, 1, min(CURVE_POINTS, max(2, len(values))))
    at = np.quantile(np.asarray(values, dtype=np.float64), shares)
    ends = tuple(map(float, shares))
    return Line(label=name, x=tuple(map(float, at)), y=ends, colour=colour, is_step=True)


def _panel(
    timeline: Timeline,
    label: str,
    lines: Sequence[tuple[str, Values, Colour]],
    *,
    limits: tuple[Limit, ...] = (),
    bands: tuple[Band, ...] = (),
    is_step: bool = False,
) -> Panel:
    values = [value for _, line, _ in lines for value in line]
    ends = [end for band in bands for end in (band.low, band.high)]
    return Panel(
        x=time_axis(timeline),
        y=axis_over(label, [*values, *ends], limits=[limit.at for limit in limits]),
        lines=tuple(
            Line(label=name, x=timeline.starts_s, y=line, colour=colour, is_step=is_step)
            for name, line, colour in lines
        ),
        limits=limits,
        bands=bands,
        x_group=TIME_GROUP,
    )
