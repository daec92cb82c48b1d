"""The report of a single run: of ``simulate --out``, and of ``bench --out``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from policies.constraint import Metric
from policies.numbers import short_beside
from policies.report import LATENCIES
from policies.sla import Sla
from tuner.pictures.picture import Axis, Colour, Line, Panel, axis_over, bounds_on
from tuner.report.report import Cell, Section, Table
from tuner.report.steps import step_sections

COLUMNS = ("mean", "p50", "p90", "p95", "p99")


def run_sections(document: dict[str, Any]) -> Iterator[Section]:
    """All of them."""
    yield _answer(document)
    if (timeline := document.get("timeline")) is not None:
        yield _over_time(timeline, _sla(document))
    if (counts := document.get("counts")) is not None:
        yield _steps_taken(counts)
    yield from step_sections(document.get("steps"))


def _sla(document: dict[str, Any]) -> Sla | None:
    found = document.get("sla")
    return None if found is None else Sla.parse(found["sla"])


def _answer(document: dict[str, Any]) -> Section:
    metrics, intervals = document["metrics"], document.get("intervals") or {}
    rows = []
    for name in LATENCIES:
        ends = intervals.get(f"p95_{name}", {})
        row: list[Cell] = [metrics[name][column] for column in COLUMNS]
        rows.append((name.removesuffix("_ms"), *row, ends.get("low"), ends.get("high")))
    others = tuple(
        (name, metrics[name])
        for name in ("throughput_tokens_per_s", "goodput_rps", "attainment")
        if metrics[name] is not None
    )
    requests = tuple((f"requests {word}", n) for word, n in document["requests"].items())
    return Section(
        name="answer",
        heading="Answer",
        lines=tuple(_verdict(document.get("sla"))),
        tables=(
            Table(columns=("ms", *COLUMNS, "p95 from", "p95 to"), rows=tuple(rows)),
            Table(columns=("number", "value"), rows=(*others, *requests)),
        ),
    )


def _verdict(sla: dict[str, Any] | None) -> Iterator[str]:
    if sla is None:
        yield "judged by no SLA"
        return
    yield f"SLA {sla['sla']} {'met' if sla['is_met'] else 'missed'}"
    for missed in sla["violations"]:
        (constraint,) = Sla.parse(missed["constraint"]).constraints
        actual = missed["actual"]
        told = "nothing observed, or too many requests failed"
        if actual is not None:  # 500.4 is no 500 where that is the bound
            told = short_beside(actual, constraint.bound)
        yield f"{constraint}: {told}"


def _over_time(timeline: dict[str, Any], sla: Sla | None) -> Section:
    count = len(timeline["arrived"])
    x = tuple(i * timeline["bin_s"] for i in range(count))
    axis = Axis(
        label="seconds since the first arrival", low=0.0, high=max(count, 1) * timeline["bin_s"]
    )

    def panel(label: str, metric: Metric | None, *lines: tuple[str, str, Colour]) -> Panel:
        drawn = tuple(
            Line(label=name, x=x, y=tuple(timeline[key]), colour=colour)
            for name, key, colour in lines
        )
        limits = () if metric is None else bounds_on(sla, metric)
        values = [value for line in drawn for value in line.y]
        y = axis_over(label, values, limits=[limit.at for limit in limits])
        return Panel(x=axis, y=y, lines=drawn, limits=limits, x_group="time")

    return Section(
        name="time",
        heading="Over time",
        panels=(
            panel(
                "requests in flight",
                None,
                ("waiting for a first token", "waiting", Colour.RED),
                ("running", "running", Colour.BLUE),
            ),
            panel(
                "TTFT, ms",
                Metric.TTFT_MS,
                ("p50 by arrival", "ttft_p50_ms", Colour.BLUE),
                ("p95 by arrival", "ttft_p95_ms", Colour.ORANGE),
            ),
            panel(
                "TPOT, ms",
                Metric.TPOT_MS,
                ("p50 by arrival", "tpot_p50_ms", Colour.BLUE),
                ("p95 by arrival", "tpot_p95_ms", Colour.ORANGE),
            ),
        ),
    )


def _steps_taken(counts: dict[str, Any]) -> Section:
    rows = tuple(
        (mode, count, counts["step_seconds"].get(mode)) for mode, count in counts["steps"].items()
    )
    return Section(
        name="taken",
        heading="Steps that were taken",
        lines=(f"{counts['mode_switches']} mode switches, {counts['preemptions']} preemptions",),
        tables=(Table(columns=("mode", "steps", "seconds"), rows=rows),),
    )
