"""Sections over operating points: the Pareto front, and which knobs mattered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from policies.pareto import aims_of, pareto_front
from policies.points import OperatingPoint
from policies.sla import Sla
from tuner.pictures.picture import (
    Axis,
    Bars,
    Cloud,
    Colour,
    Limit,
    Panel,
    Point,
    Symbol,
    axis_over,
)
from tuner.pictures.verdicts import (
    axis_label,
    clouds_of,
    ends_of,
    finite_of,
    latency_keys,
    texts_of,
)
from tuner.report.report import Cell, Section, Table
from tuner.search.importance import importances


def point_sections(points: Sequence[OperatingPoint], sla: Sla) -> Iterator[Section]:
    """The front and the importance of knobs, where there are points to tell them from."""
    if not points:
        return
    yield _front(points, sla)
    if (section := _importance(points, sla)) is not None:
        yield section


def _front(points: Sequence[OperatingPoint], sla: Sla) -> Section:
    front = pareto_front(points, aims_of(sla))
    keys = [constraint.key for constraint in sla.per_run]
    alike: dict[tuple[Cell, ...], list[OperatingPoint]] = {}
    for point in front:
        numbers = tuple(_value(point, key) for key in keys)
        alike.setdefault((point.settings.plan_text, *numbers), []).append(point)
    rows = tuple(_front_row(own, keys, sla) for own in alike.values())
    columns = ("settings", "devices", "fidelity", *keys, "P(SLA met)")
    return Section(
        name="front",
        heading="Pareto front",
        lines=(
            f"{len(front)} of {len(points)} settings are beaten by no other in devices and in all "
            "that the SLA bounds",
        ),
        tables=(Table(columns=columns, rows=rows),),
        panels=tuple(_front_panel(points, front, sla, key) for key in latency_keys(sla)),
    )


def _front_row(alike: list[OperatingPoint], keys: list[str], sla: Sla) -> tuple[Cell, ...]:
    """One row for settings of a plan whose runs were the same: caps that never bind."""
    told = next((point for point in alike if point.has_interval), alike[0])
    others = f" (and {len(alike) - 1} with other caps)" if len(alike) > 1 else ""
    return (
        f"{told.settings}{others}",
        told.cost_devices,
        told.fidelity.value,
        *(_value(told, key) for key in keys),
        told.probability(sla) if told.has_interval else None,
    )


def _value(point: OperatingPoint, key: str) -> Cell:
    found = finite_of(point.metrics, key)
    return None if found is None else found.value


def _front_panel(
    points: Sequence[OperatingPoint], front: Sequence[OperatingPoint], sla: Sla, key: str
) -> Panel:
    def place(point: OperatingPoint) -> Point | None:
        if (found := finite_of(point.metrics, key)) is None:
            return None
        return Point(
            x=float(point.cost_devices),
            y=found.value,
            y_ends=ends_of(found),
            texts=texts_of(point, sla),
        )

    clouds = clouds_of(points, sla, place)
    marked = tuple(placed for point in front if (placed := place(point)) is not None)
    if marked:
        star = Cloud(
            label="on the front", points=_bare(marked), colour=Colour.RED, symbol=Symbol.STAR
        )
        clouds = (*clouds, star)
    limits = tuple(Limit.of(c) for c in sla.constraints if c.key == key)
    ends = [y for c in clouds for p in c.points for y in (p.y, *(p.y_ends or ()))]
    devices = [point.cost_devices for point in points]
    return Panel(
        x=Axis(label="devices", low=min(devices) - 0.6, high=max(devices) + 0.6, is_whole=True),
        y=axis_over(axis_label(key), ends, limits=[limit.at for limit in limits]),
        clouds=clouds,
        limits=limits,
    )


def _bare(points: tuple[Point, ...]) -> tuple[Point, ...]:
    return tuple(Point(x=p.x, y=p.y, texts=p.texts) for p in points)


def _importance(points: Sequence[OperatingPoint], sla: Sla) -> Section | None:
    found = importances(points, sla)
    if not found:
        return None
    rows = tuple(
        (
            one.knob,
            one.share,
            ", ".join(f"{level.value}: {level.latency_over_bound:.3g}" for level in one.levels),
        )
        for one in found
    )
    return Section(
        name="importance",
        heading="Which knobs mattered",
        lines=(
            f"share of the differences in latency that each knob explains by itself, over the "
            f"{len(points)} settings at hand",
        ),
        tables=(Table(columns=("knob", "share", "latency over bounds, by value"), rows=rows),),
        panels=(
            Panel(
                x=Axis.of_names("knob", tuple(one.knob for one in found)),
                y=Axis(label="share explained", low=0.0, high=1.05),
                bars=(
                    Bars(label="share", y=tuple(one.share for one in found), colour=Colour.BLUE),
                ),
            ),
        ),
    )
