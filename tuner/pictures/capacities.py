"""Panels of ``capacity``: each bounded number against the rate, with the SLA and the capacity."""

from __future__ import annotations

from typing import Any

from policies.constraint import Constraint
from policies.numbers import short
from policies.sla import Sla
from tuner.pictures.picture import (
    Axis,
    Cloud,
    Colour,
    Limit,
    Line,
    Panel,
    Point,
    axis_over,
)
from tuner.pictures.verdicts import axis_label


def capacity_panels(document: dict[str, Any]) -> tuple[Panel, ...]:
    """Latencies against the rate, and how likely the SLA is met at it."""
    rates = document["rates"]
    word = "concurrency" if rates[0]["concurrency"] is not None else "rate_rps"
    loads = tuple(float(rate[word]) for rate in rates)
    label = "clients" if word == "concurrency" else "requests/s"
    limits = _capacity_limits(document["capacity"], word)
    x = axis_over(label, loads)
    panels = [
        _latency_panel(rates, loads, x, constraint, limits)
        for constraint in Sla.parse(document["sla"]).per_run
    ]
    chance = Panel(
        x=x,
        y=Axis(label="P(SLA met), share", low=-0.03, high=1.05),
        lines=(
            Line(
                label="P(SLA met)",
                x=loads,
                y=tuple(rate["sla_probability"] for rate in rates),
                colour=Colour.GREEN,
            ),
        ),
        limits=(
            Limit(label="least P that counts", at=document["min_probability"]),
            *limits,
        ),
        x_group="load",
    )
    return (*panels, chance)


def _latency_panel(
    rates: list[dict[str, Any]],
    loads: tuple[float, ...],
    x: Axis,
    constraint: Constraint,
    limits: tuple[Limit, ...],
) -> Panel:
    key = constraint.key
    points = [
        _point(load, rate, key)
        for load, rate in zip(loads, rates, strict=True)
        if rate["metrics"].get(key) is not None
    ]
    ends = [end for point in points for end in (point.y, *(point.y_ends or ()))]
    return Panel(
        x=x,
        y=axis_over(_label(key), ends, limits=[constraint.bound]),
        lines=(
            Line(
                label="mean of the draws",
                x=loads,
                y=tuple(rate["metrics"].get(key) for rate in rates),
                colour=Colour.BLUE,
            ),
        ),
        clouds=(
            Cloud(
                label="over draws and slower steps: least to most",
                points=tuple(points),
                colour=Colour.BLUE,
            ),
        )
        if points
        else (),
        limits=(Limit.of(constraint), *limits),
        x_group="load",
    )


def _point(load: float, rate: dict[str, Any], key: str) -> Point:
    value, ends = rate["metrics"][key], rate.get("ends", {}).get(key)
    known = ends is not None and None not in (ends["low"], ends["high"])
    return Point(
        x=load,
        y=value,
        y_ends=(ends["low"], ends["high"]) if ends is not None and known else None,
        texts=(f"at {short(load)}: {short(value)}", f"P(SLA met) {rate['sla_probability']:.2f}"),
    )


def _label(key: str) -> str:
    return axis_label(key) if key.endswith("_ms") else key.replace("_", " ")


def _capacity_limits(answer: dict[str, Any], word: str) -> tuple[Limit, ...]:
    parts = (("load", "capacity", Colour.GREEN), ("low", "its interval", Colour.PURPLE),
             ("high", "its interval", Colour.PURPLE))  # fmt: skip
    return tuple(
        Limit(label=name, at=float(answer[key][word]), is_upright=True, colour=colour)
        for key, name, colour in parts
        if answer[key] is not None
    )
