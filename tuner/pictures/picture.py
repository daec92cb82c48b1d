"""What a picture holds, whoever draws it: panels with axes in units, marks and SLA bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from policies.constraint import Constraint, Metric
from policies.sla import Sla

Values = tuple[float | None, ...]

# If a linear axis would reach this many times further than half of the values, it would show only a
# burst.
BURST = 20.0
# Longer legends would leave too little room for what they explain.
LEGEND_COLUMNS = 44
# A log axis goes down to its maximum over this; smaller values lie on its foot.
LOG_SPAN = 1e4


class Colour(StrEnum):
    """Colours that stay apart for the colour-blind (Okabe and Ito)."""

    BLUE = "#0072B2"
    ORANGE = "#E69F00"
    GREEN = "#009E73"
    PURPLE = "#CC79A7"
    SKY = "#56B4E9"
    RED = "#D55E00"
    BLACK = "#000000"


class Symbol(StrEnum):
    """Shapes of points, so that colour is not all that tells them apart."""

    DISC = "disc"
    RING = "ring"
    CROSS = "cross"
    STAR = "star"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A labelled axis, with its unit in the label, from ``low`` to ``high``.

    ``is_whole``: it counts, and only whole numbers are marked. ``names`` stand at 0, 1, ...
    """

    label: str
    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False
    names: tuple[str, ...] = ()

    @classmethod
    def of_names(cls, label: str, names: tuple[str, ...]) -> Axis:
        """An axis of things that have names."""
        return cls(label=label, low=-0.5, high=len(names) - 0.5, names=names)


@dataclass(frozen=True, kw_only=True)
class Line:
    """Values over x; None is a gap. ``is_step``: each value holds until the next x."""

    label: str
    x: tuple[float, ...]
    y: Values
    colour: Colour
    is_step: bool = False


@dataclass(frozen=True, kw_only=True)
class Area:
    """Shares over x, each held until the next x; a panel's areas are stacked in their order."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    colour: Colour


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A height over each name of the x axis; a panel's bars are stacked in their order."""

    label: str
    y: tuple[float, ...]
    colour: Colour


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point with the ends of its intervals and the lines of text that belong to it."""

    x: float
    y: float
    texts: tuple[str, ...]
    x_ends: tuple[float, float] | None = None
    y_ends: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Points that have something in common. ``is_faint``: a background for the others."""

    label: str
    points: tuple[Point, ...]
    colour: Colour
    symbol: Symbol = Symbol.DISC
    is_faint: bool = False


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A bound on y, drawn across the panel, or on x (``is_upright``)."""

    label: str
    at: float
    is_upright: bool = False
    colour: Colour = Colour.RED

    @classmethod
    def of(cls, constraint: Constraint) -> Limit:
        return cls(label=f"SLA {constraint}", at=constraint.bound)


@dataclass(frozen=True, kw_only=True)
class Band:
    """A stretch of y shaded across the panel."""

    label: str
    low: float
    high: float
    colour: Colour


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One system of axes. Panels of one ``x_group`` are zoomed together."""

    x: Axis
    y: Axis
    lines: tuple[Line, ...] = ()
    areas: tuple[Area, ...] = ()
    bars: tuple[Bars, ...] = ()
    clouds: tuple[Cloud, ...] = ()
    limits: tuple[Limit, ...] = ()
    bands: tuple[Band, ...] = ()
    x_group: str | None = None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Panels under each other, below a title and the facts that identify what is drawn."""

    title: str
    facts: tuple[str, ...]
    panels: tuple[Panel, ...]


def axis_over(label: str, values: Iterable[float | None], *, limits: Iterable[float] = ()) -> Axis:
    """An axis from 0 over the values and limits; a log axis where a burst would hide the rest."""
    known = sorted(v for v in values if v is not None and math.isfinite(v) and v > 0)
    bounds = [v for v in limits if v > 0]
    most = max([*known[-1:], *bounds], default=1.0)
    # A burst hides a bound below it as well.
    if not known or most <= BURST * min([median(known), *bounds]):
        return Axis(label=label, low=0.0, high=1.08 * most)
    least = min([known[0], *bounds])
    low = max(least / 1.3, most / LOG_SPAN)
    return Axis(label=f"{label} (log axis)", low=low, high=1.3 * most, is_log=True)


def bounds_on(sla: Sla | None, metric: Metric) -> tuple[Limit, ...]:
    """The SLA's bounds on ``metric``."""
    constraints = sla.constraints if sla else ()
    return tuple(Limit.of(c) for c in constraints if c.metric is metric)
