"""The picture of ``plan``: every candidate's latencies over the devices it takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from engine.spec.settings import Settings
from policies.points import OperatingPoint
from tuner.pictures.picture import Axis, Cloud, Limit, Panel, Picture, Point, axis_over
from tuner.pictures.verdicts import (
    axis_label,
    chosen,
    clouds_of,
    ends_of,
    finite_of,
    latency_keys,
    texts_of,
)
from tuner.planner.document import choices, plan_title
from tuner.planner.explore import JudgedOn
from tuner.planner.planner import PlanReport

# Candidates with the same number of devices stand side by side over this much of the axis.
SPREAD = 0.7


def plan_picture(report: PlanReport, *, model: str) -> Picture:
    """All candidates that were simulated to the end; stars on the chosen ones, or the near miss."""
    question = report.question
    found = choices(report)
    answer = f"{found[0].role} is {found[0].point.settings}" if found else "no plan meets the SLA"
    return Picture(
        title=f"plan of {model} on {question.node.hardware}: {answer}",
        facts=(
            *plan_title(report, model=model).parts,
            _what(report),
        ),
        panels=tuple(_panel(report, key) for key in latency_keys(question.sla)),
    )


def _points(report: PlanReport) -> Sequence[OperatingPoint]:
    """Whole simulations; if not even single requests meet the SLA, runs of those."""
    if report.points:
        return report.points
    return [tried.point for e in report.explored for tried in e.tried if tried.metrics]


def _what(report: PlanReport) -> str:
    count = len(_points(report))
    if report.is_from_alone:
        return f"{count} settings drawn, each with single requests: not even those meet the SLA"
    in_part = sum(report.count(kind) for kind in (JudgedOn.SLICE, JudgedOn.PART))
    return f"{count} settings drawn; {in_part} more failed on a part of the load"


def _panel(report: PlanReport, key: str) -> Panel:
    sla, devices = report.question.sla, [point.cost_devices for point in _points(report)] or [1]
    places = _places(report, key)
    clouds = clouds_of(_points(report), sla, lambda point: places.get(point.settings))
    stars = tuple(_stars(report, places))
    limits = tuple(Limit.of(c) for c in sla.constraints if c.key == key)
    values = [value for p in places.values() for value in (p.y, *(p.y_ends or ()))]
    return Panel(
        x=Axis(
            label="devices (candidates side by side, from fast to slow)",
            low=min(devices) - 0.6,
            high=max(devices) + 0.6,
            is_whole=True,
        ),
        y=axis_over(axis_label(key), values, limits=[limit.at for limit in limits]),
        clouds=(*clouds, *stars),
        limits=limits,
        x_group="devices",
    )


def _places(report: PlanReport, key: str) -> dict[Settings, Point]:
    """Where each candidate stands: over its devices, beside the others from fast to slow.

    A candidate stands at the same place in every panel.
    """
    sla = report.question.sla
    by_devices: dict[int, list[OperatingPoint]] = defaultdict(list)
    for point in sorted(_points(report), key=lambda p: (p.latency_score(sla), str(p.settings))):
        by_devices[point.cost_devices].append(point)
    places = {}
    for devices, own in by_devices.items():
        for rank, point in enumerate(own):
            if (estimate := finite_of(point.metrics, key)) is not None:
                places[point.settings] = Point(
                    x=devices + SPREAD * ((rank + 0.5) / len(own) - 0.5),
                    y=estimate.value,
                    y_ends=ends_of(estimate),
                    texts=texts_of(point, sla),
                )
    return places


def _stars(report: PlanReport, places: dict[Settings, Point]) -> Iterator[Cloud]:
    """One star per chosen candidate (chosen twice: one with both roles), or on the near miss."""
    roles: dict[Settings, list[str]] = defaultdict(list)
    for choice in choices(report):
        roles[choice.point.settings].append(choice.role)
    if not roles and (closest := report.selection.closest) is not None:
        roles[closest.settings].append("nearest")
    for settings, own in roles.items():
        if (place := places.get(settings)) is not None:
            yield chosen(f"{', '.join(own)}: {settings}", replace(place, y_ends=None))
