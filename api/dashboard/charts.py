"""Charts as ECharts options, each axis with its unit. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from math import ceil, log2
from typing import Any

from api.dashboard.style import COLOURS

Json = dict[str, Any]
Point = tuple[Any, float | None]
GRID = {"left": 60, "right": 24, "top": 56, "bottom": 46}
DASHES = ("solid", "dashed", "dotted")
NO_DATA = {"left": "center", "top": "middle", "textStyle": {"fontSize": 14, "fontWeight": 400}}
FAINT = {"lineStyle": {"color": "rgba(128,128,128,0.25)"}}


def over_time(
    unit: str,
    series: Mapping[str, Sequence[tuple[datetime, float | None]]],
    *,
    bounds: Mapping[str, float] | None = None,
    marks: Sequence[tuple[datetime, str]] = (),
    most: float | None = None,
) -> Json:
    """Lines over time; ``bounds`` are level lines with their names, ``marks`` upright ones."""
    lines = [
        _line(name, [(at.isoformat(), value) for at, value in points], index)
        for index, (name, points) in enumerate(series.items())
    ]
    values = [value for points in series.values() for _, value in points if value is not None]
    highest = max((bounds or {}).values(), default=0.0)
    if highest > max(values, default=0.0):  # a level line alone does not widen the axis
        most = round(1.1 * highest, 1)
    if lines:
        lines[0]["markLine"] = _marks(
            [{"yAxis": level, "name": name} for name, level in (bounds or {}).items()],
            [{"xAxis": at.isoformat(), "name": name} for at, name in marks],
        )
    return {
        **_common(),
        "useUTC": True,
        "title": {"show": not values, "text": "no requests have ended", **NO_DATA},
        "xAxis": {
            "type": "time",
            "name": "time (UTC)",
            **_axis_name(),
            "axisLabel": {"hideOverlap": True},
        },
        "yAxis": {"type": "value", "name": unit, "min": 0, "max": most, "splitLine": FAINT},
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
            "type": "value",
            "name": "tokens of a step, up to",
            **_axis_name(),
            "min": 0,
            "max": ceil(log2(max(sizes, default=2))),
            "interval": 1,
            "splitLine": FAINT,
            "axisLabel": {":formatter": "exponent => 2 ** exponent"},
        },
        "yAxis": {"type": "value", "name": "ms per step", "min": 0, "splitLine": FAINT},
        "series": lines,
    }


def predicted_against_measured(metric: str, points: Sequence[tuple[float, float, str]]) -> Json:
    """A dot for each trial: what was predicted, what came, its name; on the line both are one."""
    most = max((value for x, y, _ in points for value in (x, y)), default=1.0) * 1.1
    least = 0.0
    dots = [{"value": [x, y], "name": name} for x, y, name in points]
    return {
        **_common(),
        "tooltip": {"trigger": "item", "confine": True},
        "xAxis": {"type": "value", "name": f"predicted {metric}", **_axis_name(), "min": least,
                  "max": round(most, 1), "splitLine": FAINT},
        "yAxis": {"type": "value", "name": f"measured {metric}", "min": least,
                  "max": round(most, 1), "splitLine": FAINT},
        "series": [
            {"name": "trial", "type": "scatter", "data": dots, "symbolSize": 10,
             "itemStyle": {"color": COLOURS[0]}},
            {"name": "as predicted", "type": "line", "data": [[least, least], [most, most]],
             "symbol": "none", "lineStyle": {"type": "dashed", "color": "#808a97"},
             "itemStyle": {"color": "#808a97"}},
        ],
    }  # fmt: skip


def bars(unit: str, values: Mapping[str, float]) -> Json:
    """A level bar for each name, the first on top."""
    return {
        **_common(),
        "grid": {"left": 150, "right": 32, "top": 12, "bottom": 46},
        "legend": {"show": False},
        "xAxis": {"type": "value", "name": unit, **_axis_name(), "min": 0, "splitLine": FAINT},
        "yAxis": {"type": "category", "data": list(values), "inverse": True},
        "series": [
            {
                "type": "bar",
                "data": [round(v, 4) for v in values.values()],
                "itemStyle": {"color": COLOURS[0]},
            }
        ],
    }


def dots(x: str, y: str, groups: Mapping[str, Sequence[tuple[float, float, str]]]) -> Json:
    """A dot for each named point, in a colour for each group."""
    return {
        **_common(),
        "tooltip": {"trigger": "item", "confine": True},
        "xAxis": {
            "type": "value",
            "name": x,
            **_axis_name(),
            "min": 0,
            "minInterval": 1,
            "splitLine": FAINT,
        },
        "yAxis": {"type": "value", "name": y, "min": 0, "splitLine": FAINT},
        "series": [
            {
                "name": name,
                "type": "scatter",
                "symbolSize": 10,
                "symbol": ("circle", "diamond", "triangle")[index % 3],
                "itemStyle": {"color": COLOURS[index % len(COLOURS)]},
                "data": [{"value": [a, b], "name": text} for a, b, text in points],
            }
            for index, (name, points) in enumerate(groups.items())
        ],
    }


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
    return {"formatter": "{b}", "position": position, "textBorderColor": "transparent"}
