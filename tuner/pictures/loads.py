"""The picture of ``capacity``: what becomes of the SLA as the load grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policies.constraint import Constraint
from policies.sla import Sla
from policies.verdict import MIN_CHANCE
from tuner.pictures.picture import Axis, Colour, Limit, Line, Panel, Picture, axis_over
from tuner.pictures.verdicts import axis_label

LOAD_GROUP = "load"


def capacity_picture(document: dict[str, Any], *, facts: Sequence[str], sla: Sla) -> Picture:
    """P(SLA met), attainment and each bounded latency over the loads that were looked at, with the
    capacity and the ends of its interval upright."""
    answer, rates = document["capacity"], document["rates"]
    key = "rate_rps" if document["asked"]["concurrency"] is None else "concurrency"
    x = axis_over("requests/s" if key == "rate_rps" else "clients", [r[key] for r in rates])
    at = tuple(float(rate[key]) for rate in rates)
    marks = tuple(
        Limit(label=label, at=answer[name][key], is_upright=True, colour=colour)
        for name, label, colour in (
            ("load", "capacity", Colour.RED),
            ("low", "low end of its interval", Colour.PURPLE),
            ("high", "high end of its interval", Colour.PURPLE),
        )
        if answer[name] is not None
    )
    shares = Panel(
        x=x,
        y=Axis(label="share", low=0.0, high=1.05),
        lines=(
            _line("P(SLA met)", at, [r["sla_probability"] for r in rates], Colour.BLUE),
            _line("attainment", at, [r["attainment"] for r in rates], Colour.GREEN),
        ),
        limits=(*marks, Limit(label=f"least P of {MIN_CHANCE:g}", at=MIN_CHANCE)),
        x_group=LOAD_GROUP,
    )
    latencies = [c for c in sla.per_run if c.metric.is_latency]
    panels = tuple(_panel(c, x, at, rates, marks) for c in latencies)
    load = answer["load"]
    found = "no load is carried" if load is None else f"{load[key]:.4g} {x.label} are carried"
    return Picture(title=f"capacity: {found}", facts=tuple(facts), panels=(shares, *panels))


def _panel(
    constraint: Constraint,
    x: Axis,
    at: tuple[float, ...],
    rates: list[dict[str, Any]],
    marks: tuple[Limit, ...],
) -> Panel:
    values = [rate["metrics"].get(constraint.key) for rate in rates]
    label = axis_label(constraint.key)
    return Panel(
        x=x,
        y=axis_over(label, values, limits=[constraint.bound]),
        lines=(_line(label, at, values, Colour.ORANGE),),
        limits=(*marks, Limit.of(constraint)),
        x_group=LOAD_GROUP,
    )


def _line(
    label: str, at: tuple[float, ...], values: Sequence[float | None], colour: Colour
) -> Line:
    return Line(label=label, x=at, y=tuple(values), colour=colour)
