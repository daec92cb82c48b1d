"""The picture of ``compare``: each case's numbers, and its draws, side by side."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from policies.numbers import counted, short
from policies.paired import Change
from policies.sla import Sla
from tuner.pictures.picture import (
    Axis,
    Cloud,
    Colour,
    Limit,
    Panel,
    Picture,
    Point,
    Symbol,
    axis_over,
)

COLOURS = {"static": Colour.BLUE, "shift": Colour.ORANGE, "bound": Colour.BLACK}
WORDS = {"static": "static plans", "shift": "plans that shift", "bound": "bound by the oracle"}


def comparison_picture(document: dict[str, Any]) -> Picture:
    """All metrics that are compared."""
    return Picture(
        title=f"comparison on {counted(document['num_devices'], 'device')}",
        facts=tuple(document["title"].split("; ", 2)),
        panels=comparison_panels(document),
    )


def comparison_panels(document: dict[str, Any]) -> tuple[Panel, ...]:
    """A panel per metric: means with the least and most of their draws."""
    cases = [case for case in document["cases"] if case["metrics"]]
    panels = (_panel(document, cases, metric) for metric in document["metrics"])
    return tuple(panel for panel in panels if panel is not None)


def _panel(
    document: dict[str, Any], cases: list[dict[str, Any]], metric: dict[str, Any]
) -> Panel | None:
    key = metric["key"]
    groups: dict[str, list[Point]] = {kind: [] for kind in COLOURS}
    for place, case in enumerate(cases):
        known = [value for value in case["metrics"][key]["draws"] if value is not None]
        if known:
            groups[case["kind"]].append(_point(place, case, metric, known))
    points = [point for own in groups.values() for point in own]
    if not points:
        return None
    limits = _limits(document["sla"], key)
    ends = [end for point in points for end in (point.y, *(point.y_ends or ()))]
    return Panel(
        x=Axis.of_names("", tuple(map(_short_name, cases))),
        y=axis_over(metric["name"], ends, limits=[limit.at for limit in limits]),
        clouds=tuple(
            Cloud(
                label=WORDS[kind],
                points=tuple(own),
                colour=COLOURS[kind],
                symbol=Symbol.RING if kind == "bound" else Symbol.DISC,
            )
            for kind, own in groups.items()
            if own
        ),
        limits=limits,
    )


def _short_name(case: dict[str, Any]) -> str:
    """Under a picture there is room for one of the two."""
    name: str = case["plan"] if case["kind"] == "static" else case["name"]
    return name


def _point(place: int, case: dict[str, Any], metric: dict[str, Any], known: list[float]) -> Point:
    texts = [case["label"], f"{metric['name']} {short(fmean(known))}"]
    change = case["against_best_static"].get(metric["key"])
    if change is not None:
        texts.append(f"against the best static plan {Change.from_json(change)}")
    return Point(
        x=float(place), y=fmean(known), y_ends=(min(known), max(known)), texts=tuple(texts)
    )


def _limits(sla: str | None, key: str) -> tuple[Limit, ...]:
    if sla is None:
        return ()
    found = (c for c in Sla.parse(sla).per_run if c.key == key and math.isfinite(c.bound))
    return tuple(Limit.of(constraint) for constraint in found)
