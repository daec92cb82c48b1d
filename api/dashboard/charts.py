"""Charts as ECharts options, each axis with its unit. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from math import ceil, floor, log2, log10
from typing import Any

from api.dashboard.style import COLOURS

Json = dict[str, Any]
Point = tuple[Any, float | None]
GRID = {"left": 60, "right": 24, "top": 56, "bottom": 46}
DASHES = ("solid", "dashed", "dotted")
NO_DATA = {"left": "center", "top": "middle", "textStyle": {"fontSize": 14, "fontWeight": 400}}
MOST_ON_ONE_AXIS = 10
FAINT = {"lineStyle": {"color": "rgba(128,128,128,0.25)"}}


def over_time(
    unit: str,
    series: Mapping[str, Sequence[tuple[datetime, float | None]]],
    *,
    bounds: Mapping[str, float] | None = None,
    marks: Sequence[tuple[datetime, str]] = (),
    most: float | None = None,
    none: str = "no requests have ended",
) -> Json:
    """Lines over time; ``bounds`` are level lines with their names, ``marks`` upright ones.

    ``none`` stands where there is nothing to draw, without axes, which would run through it.
    """
    lines = [
        _line(name, [(at.isoformat(), value) for at, value in points], index)
        for index, (name, points) in enumerate(series.items())
    ]
    values = [value for points in series.values() for _, value in points if value is not None]
    highest = max((bounds or {}).values(), default=0.0)
    if highest > max(values, default=0.0):  # a level line alone does not widen the axis
        most = round_up(1.1 * highest)
    has_legend = len(series) > 1
    if lines:
        level = [{"yAxis": level, "name": name} for name, level in (bounds or {}).items()]
        upright = [{"xAxis": at.isoformat(), "name": name} for at, name in marks]
        lines[0]["markLine"] = _marks(level, upright) if values else _marks([], [])
    return {
        **_common(),
        "grid": GRID if has_legend else {**GRID, "top": 32},
        "legend": {"top": 4, "type": "scroll", "show": has_legend and bool(values)},
        "useUTC": True,
        "title": {"show": not values, "text": none, **NO_DATA},
        "xAxis": {
            "show": bool(values),
            "type": "time",
            "splitNumber": 4,  # else labels touch where three charts share a row
            "name": "time (UTC)",
            **_axis_name(),
            "axisLabel": {"hideOverlap": True, "formatter": "{HH}:{mm}:{ss}"},
        },
        "yAxis": {
            "show": bool(values),
            "type": "value",
            "name": unit,
            "min": 0,
            "max": most,
            "splitLine": FAINT,
        },
        "series": lines,
    }


def step_times(
    by_mode: Mapping[str, Sequence[tuple[int, float]]], thresholds: Mapping[str, int]
) -> Json:
    """Milliseconds of a step against its tokens, for each mode, with thresholds drawn in."""
    lines = [
        _line(mode, [(log2(tokens), ms) for tokens, ms in points], i)
        for i, (mode, points) in enumerate(by_mode.items())
    ]
    if lines:
        upright = [
            {"xAxis": log2(tokens), "name": f"{mode} ≤ {tokens}"}
            for mode, tokens in thresholds.items()
            if tokens
        ]
        lines[0]["markLine"] = _marks([], upright)
    sizes = [tokens for points in by_mode.values() for tokens, _ in points]
    sizes += [tokens for tokens in thresholds.values() if tokens]
    return {
        **_common(),
        "title": {"show": not by_mode, "text": "no steps have run", **NO_DATA},
        "tooltip": {"show": False},
        "xAxis": {
            "show": bool(by_mode),
            "type": "value",
            "name": "tokens of a step, up to",
            **_axis_name(),
            "min": 0,
            "max": ceil(log2(max(sizes, default=2))),
            "interval": 1,
            "splitLine": FAINT,
            "axisLabel": {":formatter": "exponent => 2 ** exponent"},
        },
        "yAxis": {
            "show": bool(by_mode),
            "type": "value",
            "name": "ms per step",
            "min": 0,
            "splitLine": FAINT,
        },
        "series": lines,
    }


def predicted_against_measured(metric: str, points: Sequence[tuple[Json, float, str]]) -> Json:
    """A dot for each trial, with the interval that was predicted: what was predicted (``value``,
    ``low``, ``high``), what came, its name; on the line both are one."""
    highest = max((number for p, y, _ in points for number in (p["high"], y)), default=1.0)
    most = round_up(1.1 * highest)
    axis = {"type": "value", **_axis_name(), "min": 0, "max": most, "splitLine": FAINT}
    dots = [{"value": [p["value"], y], "name": name} for p, y, name in points]
    return {
        **_common(),
        "tooltip": {"trigger": "item", "confine": True},
        "xAxis": {**axis, "name": f"predicted {metric}"},
        "yAxis": {**axis, "name": f"measured {metric}", "nameLocation": "end", "nameGap": 15,
                  "nameTextStyle": {"align": "left"}},
        "series": [
            {"name": "trial", "type": "scatter", "data": dots, "symbolSize": 10,
             "itemStyle": {"color": COLOURS[0]}},
            _intervals("90 % interval", [((p["low"], y), (p["high"], y)) for p, y, _ in points], 0),
            {"name": "as predicted", "type": "line", "data": [[0, 0], [most, most]],
             "symbol": "none", "lineStyle": {"type": "dashed", "color": "#808a97"},
             "itemStyle": {"color": "#808a97"}},
        ],
    }  # fmt: skip


def bars(unit: str, values: Mapping[str, float], *, none: str) -> Json:
    """A level bar for each name, the first on top; ``none`` stands where there is none."""
    return {
        **_common(),
        "title": {"show": not values, "text": none, **NO_DATA},
        "grid": {"left": 150, "right": 32, "top": 12, "bottom": 46},
        "legend": {"show": False},
        "xAxis": {
            "show": bool(values),
            "type": "value",
            "name": unit,
            **_axis_name(),
            "min": 0,
            "splitLine": FAINT,
        },
        "yAxis": {
            "show": bool(values),
            "type": "category",
            "data": list(values),
            "inverse": True,
        },
        "series": [
            {
                "type": "bar",
                "data": [round(v, 4) for v in values.values()],
                "itemStyle": {"color": COLOURS[0]},
            }
        ],
    }


def dots(
    x: str,
    y: str,
    groups: Mapping[str, Sequence[tuple[float, float, str]]],
    *,
    bounds: Mapping[str, float],
    none: str,
) -> Json:
    """A dot for each named point, in a colour for each group; ``bounds`` are level lines with
    their names; ``none`` stands where there is no point."""
    points = [point for group in groups.values() for point in group]
    heights = [*bounds.values(), *(b for _, b, _ in points)] or [1.0]
    made: Json = {
        **_common(),
        "title": {"show": not points, "text": none, **NO_DATA},
        "tooltip": {"trigger": "item", "confine": True},
        "xAxis": {
            "show": bool(points),
            "type": "value",
            "name": x,
            **_axis_name(),
            "min": 0,
            "max": max((a for a, _, _ in points), default=0) + 1,
            "minInterval": 1,
            "splitLine": FAINT,
        },
        "yAxis": {
            "show": bool(points),
            "name": y,
            "splitLine": FAINT,
            **(_height_axis(min(heights), max(heights)) if points else {"type": "value"}),
        },
        "series": [
            {
                "name": name,
                "type": "scatter",
                "symbolSize": 10,
                "symbol": ("circle", "diamond", "triangle")[index % 3],
                "itemStyle": {"color": COLOURS[index % len(COLOURS)]},
                "data": [{"value": [a, b], "name": text} for a, b, text in group],
            }
            for index, (name, group) in enumerate(groups.items())
        ],
    }
    if points:
        level = [{"yAxis": at, "name": name} for name, at in bounds.items()]
        made["series"][0]["markLine"] = _marks(level, [])
    return made


def by_number(
    x: str,
    unit: str,
    series: Mapping[str, Sequence[tuple[int, float | None]]],
    *,
    bounds: Mapping[str, float],
    most: float,
) -> Json:
    """Lines over what is counted; ``bounds`` are level lines with their names. What lies further
    from 0 than ``most`` is cut off."""
    lines = [_line(name, points, index) for index, (name, points) in enumerate(series.items())]
    if lines:
        level = [{"yAxis": at, "name": name} for name, at in bounds.items()]
        lines[0]["markLine"] = _marks(level, [])
    return {
        **_common(),
        "xAxis": {"type": "value", "name": x, **_axis_name(), "min": 1, "minInterval": 1,
                  "splitLine": FAINT},
        "yAxis": {"type": "value", "name": unit, "min": -most, "max": most, "splitLine": FAINT},
        "series": lines,
    }  # fmt: skip


def over_load(
    unit: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    level: float,
    marks: Mapping[str, float],
) -> Json:
    """Shares in percent against load; ``level`` is a level line, ``marks`` are upright ones."""
    lines = [_line(name, points, index) for index, (name, points) in enumerate(series.items())]
    if lines:
        lines[0]["markLine"] = _marks(
            [{"yAxis": level, "name": f"{level:g} %"}],
            [{"xAxis": at, "name": name} for name, at in marks.items()],
        )
    return {
        **_common(),
        "xAxis": {"type": "value", "name": unit, **_axis_name(), "scale": True, "splitLine": FAINT},
        "yAxis": {"type": "value", "name": "%", "min": 0, "max": 100, "splitLine": FAINT},
        "series": lines,
    }


def interval_points(
    x: str, y: str, points: Sequence[tuple[float, float, float, float | None]]
) -> Json:
    """A value for each x, with its interval: x, low, value, high (None: open)."""
    ends = [(at, low, value if high is None else high) for at, low, value, high in points]
    return {
        **_common(),
        "xAxis": {"type": "value", "name": x, **_axis_name(), "min": 0, "minInterval": 1,
                  "max": max((at for at, _, _, _ in points), default=0) + 1, "splitLine": FAINT},
        "yAxis": {"type": "value", "name": y, "min": 0, "splitLine": FAINT,
                  "nameTextStyle": {"align": "left"}},
        "series": [
            _line("carried", [(at, value) for at, _, value, _ in points], 0),
            _intervals("90 % interval", [((at, low), (at, high)) for at, low, high in ends], 0),
        ],
    }  # fmt: skip


def bins(x: str, y: str, names: Sequence[str], counts: Sequence[float]) -> Json:
    """An upright bar for each bin."""
    return {
        **_common(),
        "grid": {**GRID, "top": 32},
        "legend": {"show": False},
        "xAxis": {"type": "category", "name": x, **_axis_name(), "data": list(names)},
        "yAxis": {"type": "value", "name": y, "min": 0, "splitLine": FAINT},
        "series": [{"type": "bar", "data": list(counts), "barCategoryGap": "10%",
                    "itemStyle": {"color": COLOURS[0]}}],
    }  # fmt: skip


def counts_over_two(
    x: tuple[str, Sequence[str]], y: tuple[str, Sequence[str]], counts: Sequence[Sequence[int]]
) -> Json:
    """How many fall into each cell, as the depth of its colour; ``counts`` are by x, then y."""
    cells = [[i, j, count] for i, row in enumerate(counts) for j, count in enumerate(row) if count]
    most = max((cell[2] for cell in cells), default=1)
    return {
        **_common(),
        "grid": {**GRID, "right": 90, "top": 32},
        "legend": {"show": False},
        "tooltip": {"trigger": "item", "confine": True},
        "xAxis": {"type": "category", "name": x[0], **_axis_name(), "data": list(x[1])},
        "yAxis": {"type": "category", "name": y[0], "data": list(y[1]),
                  "nameTextStyle": {"align": "left"}},
        "visualMap": {"min": 0, "max": most, "right": 0, "top": "middle", "text": ["requests", ""],
                      "itemHeight": 90, "inRange": {"color": ["#bcd7f3", "#0f4c92"]}},
        "series": [{"type": "heatmap", "data": cells}],
    }  # fmt: skip


def _height_axis(lowest: float, highest: float) -> Json:
    """From 0; by powers of ten where one far-off point would press all others to the ground."""
    if 0 < MOST_ON_ONE_AXIS * lowest < highest:
        return {"type": "log", "max": 10.0 ** ceil(log10(1.1 * highest))}
    return {"type": "value", "min": 0, "max": round_up(1.1 * highest)}


def round_up(value: float) -> float:
    """The next number that an axis may end at: 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8 times a power
    of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** floor(log10(value))
    ends = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return round(next(e for e in ends if e * power >= value * (1 - 1e-9)) * power, 6)


def _intervals(
    name: str, ends: Sequence[tuple[tuple[float, float], tuple[float, float]]], index: int
) -> Json:
    """A stroke from end to end for each interval."""
    gap: Point = (None, None)
    points = [point for first, last in ends for point in (first, last, gap)]
    made = _line(name, points, index)
    return {**made, "symbol": "rect", "symbolSize": [9, 2], "tooltip": {"show": False}}


def _common() -> Json:
    return {
        "animation": False,
        "grid": GRID,
        "legend": {"top": 4, "type": "scroll"},
        "tooltip": {"trigger": "axis", "confine": True},
    }


def _axis_name() -> Json:
    return {"nameLocation": "middle", "nameGap": 28}


def _line(name: str, points: Sequence[Point], index: int) -> Json:
    colour = COLOURS[index % len(COLOURS)]
    return {
        "name": name,
        "type": "line",
        "symbol": "circle",  # filled: an empty one is white on dark ground
        "showSymbol": True,  # a point between gaps has no line
        "symbolSize": 4,
        "connectNulls": False,
        "data": [[x, None if y is None else round(y, 3)] for x, y in points],
        "lineStyle": {
            "width": 2,
            "color": colour,
            "type": DASHES[index % len(DASHES)],
        },
        "itemStyle": {"color": colour},
    }


def _marks(level: list[Json], upright: list[Json]) -> Json:
    bad, plain = {"color": "#c8505a", "type": "solid"}, {"color": "#808a97", "type": "dashed"}
    return {
        "symbol": "none",
        "silent": True,
        "data": [
            *({**m, "lineStyle": bad, "label": _label("insideStartTop")} for m in level),
            *({**m, "lineStyle": plain, "label": _label("end")} for m in upright),
        ],
    }


def _label(position: str) -> Json:
    found: Json = {"formatter": "{b}", "position": position, "textBorderColor": "transparent"}
    return found if position == "end" else {**found, "distance": 6}
