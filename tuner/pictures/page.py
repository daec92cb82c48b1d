"""Pictures as one HTML page to hover over and zoom into, by Plotly, whose code is in the page."""

from __future__ import annotations

import json
from html import escape
from math import log10
from textwrap import wrap
from typing import Any

from plotly.offline import get_plotlyjs

from tuner.pictures.picture import (
    LEGEND_COLUMNS,
    Area,
    Axis,
    Band,
    Bars,
    Cloud,
    Colour,
    Limit,
    Line,
    Panel,
    Picture,
    Symbol,
)

PANEL_PIXELS = 250
LINE_PIXELS = 17
TITLE_COLUMNS = 150
GAP_PIXELS = 62
TICK_COLUMNS = 16
WRAPPED_NAMES = 5
SYMBOLS = {Symbol.DISC: "circle", Symbol.RING: "circle-open", Symbol.CROSS: "x"}
# The browser itself keeps the page from loading anything.
NOTHING_LOADED = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)
CONFIG = {"displaylogo": False, "responsive": True, "plotlyServerURL": ""}

Trace = dict[str, Any]


def page_of(picture: Picture) -> str:
    """The whole page; it refers to nothing outside itself."""
    figure = figure_of(picture)
    parts = [script_json(part) for part in (figure["data"], figure["layout"], CONFIG)]
    call = f'Plotly.newPlot("picture", {", ".join(parts)});'
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{NOTHING_LOADED}"><title>{escape(picture.title)}</title>'
    )
    return (
        f"<!doctype html>\n<html><head>{head}\n<script>{get_plotlyjs()}</script></head>\n"
        f'<body style="margin:0"><div id="picture"></div>\n<script>{call}</script>\n'
        "</body></html>\n"
    )


def script_json(value: Any) -> str:
    """JSON to stand in a script: "</" would end the script that holds it."""
    return json.dumps(value, allow_nan=False).replace("</", "<\\/")


def panel_figure(panel: Panel) -> dict[str, Any]:
    """One panel by itself, for a narrow page too: its legend stands below it."""
    drawn = _traces(panel)
    names = [trace["name"] for trace in drawn]
    # What is drawn twice under one name stands once in the legend.
    traces = [
        {**trace, "showlegend": trace["name"] not in names[:number]}
        for number, trace in enumerate(drawn)
    ]
    rows = sum(1 + name.count("<br>") for name in dict.fromkeys(names))
    below = LINE_PIXELS * rows + 80
    height = PANEL_PIXELS + below
    layout = {
        "xaxis": _axis(panel.x),
        "yaxis": _axis(panel.y),
        "legend": {
            "orientation": "v",
            "x": 0,
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "font": {"size": 11},
            "bgcolor": "rgba(0,0,0,0)",
        },
        "barmode": "stack",
        "height": height,
        "margin": {"t": 12, "b": below, "l": 60, "r": 12},
        "hovermode": "closest",
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": 12, "color": Colour.BLACK.value},
    }
    return {"data": traces, "layout": layout}


def figure_of(picture: Picture) -> dict[str, Any]:
    """Plotly's ``data`` and ``layout``."""
    data: list[Trace] = []
    axes: dict[str, Any] = {}
    facts = [escape(line) for fact in picture.facts for line in wrap(fact, TITLE_COLUMNS)]
    head = LINE_PIXELS * (len(facts) + 3)
    count = len(picture.panels)
    inner = count * PANEL_PIXELS + (count - 1) * GAP_PIXELS
    first_of_group: dict[str, str] = {}
    for number, panel in enumerate(picture.panels, start=1):
        top = 1 - (number - 1) * (PANEL_PIXELS + GAP_PIXELS) / inner
        suffix = "" if number == 1 else str(number)
        links = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "legend": f"legend{suffix}"}
        data += [{**trace, **links} for trace in _traces(panel)]
        x_axis = {**_axis(panel.x), "anchor": links["yaxis"]}
        if panel.x_group is not None:
            first = first_of_group.setdefault(panel.x_group, links["xaxis"])
            x_axis |= {} if first == links["xaxis"] else {"matches": first}
        low = max(0.0, top - PANEL_PIXELS / inner)
        axes[f"xaxis{suffix}"] = x_axis
        axes[f"yaxis{suffix}"] = {**_axis(panel.y), "anchor": links["xaxis"], "domain": [low, top]}
        axes[links["legend"]] = {"x": 1.01, "y": top, "yanchor": "top", "font": {"size": 11}}
    text = f"<b>{escape(picture.title)}</b><br>{'<br>'.join(facts)}"
    layout = {
        **axes,
        "title": {
            "text": text,
            "font": {"size": 13},
            "x": 0.01,
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            # Plotly measures from the foot of the first line.
            "pad": {"t": LINE_PIXELS},
        },
        "height": inner + head + 70,
        "margin": {"t": head, "b": 60, "l": 80, "r": 40},
        "hovermode": "closest",
        "template": "none",
        "font": {"size": 12},
        **({"barmode": "stack"} if any(panel.bars for panel in picture.panels) else {}),
    }
    return {"data": data, "layout": layout}


def _traces(panel: Panel) -> list[Trace]:
    return [
        *(_band(band, panel.x) for band in panel.bands),
        *(_area(area) for area in panel.areas),
        *(_bars(bars, panel) for bars in panel.bars),
        *(_line(line, panel) for line in panel.lines),
        *(_cloud(cloud) for cloud in panel.clouds),
        *(_limit(limit, panel) for limit in panel.limits),
    ]


def _axis(axis: Axis) -> dict[str, Any]:
    ends = [axis.low, axis.high]
    return {
        "title": {"text": escape(axis.label), "font": {"size": 12}},
        "type": "log" if axis.is_log else "linear",
        "range": [log10(end) for end in ends] if axis.is_log else ends,
        "gridcolor": "#e6e6e6",
        "zeroline": False,
        "automargin": True,
        "exponentformat": "none",
        **({"dtick": 1} if axis.is_whole else {}),
        **(_ticks(axis.names) if axis.names else {}),
    }


def _ticks(names: tuple[str, ...]) -> dict[str, Any]:
    at = list(range(len(names)))
    # Many names stand upright on a narrow page, where a second line would run into the next name.
    is_wrapped = len(names) <= WRAPPED_NAMES
    columns = TICK_COLUMNS if is_wrapped else max(map(len, names))
    ticks = ["<br>".join(map(escape, wrap(name, columns))) for name in names]
    angle = {} if is_wrapped else {"tickangle": 90}
    return {"tickmode": "array", "tickvals": at, "ticktext": ticks, **angle}


def _bars(bars: Bars, panel: Panel) -> Trace:
    names = [escape(name) for name in panel.x.names]
    return {
        "type": "bar",
        "name": _legend(bars.label),
        "x": list(range(len(names))),
        "y": list(bars.y),
        "text": names,
        "textposition": "none",
        "marker": {"color": bars.colour.value},
        "hovertemplate": f"{escape(bars.label)}<br>%{{text}}: %{{y:.4g}}<extra></extra>",
    }


def _line(line: Line, panel: Panel) -> Trace:
    return {
        "type": "scatter",
        "name": _legend(line.label),
        "x": list(line.x),
        "y": list(line.y),
        "mode": "lines" if line.is_step else "lines+markers",
        "line": {
            "color": line.colour.value,
            "width": 1.6,
            "shape": "hv" if line.is_step else "linear",
        },
        "marker": {"size": 4},
        "hovertemplate": _hover(panel, escape(line.label)),
    }


def _area(area: Area) -> Trace:
    return {
        "type": "scatter",
        "name": _legend(area.label),
        "x": list(area.x),
        "y": list(area.y),
        "mode": "lines",
        "line": {"width": 0, "shape": "hv", "color": area.colour.value},
        "stackgroup": "areas",
        "hovertemplate": f"{escape(area.label)}: %{{y:.3g}}<extra></extra>",
    }


def _cloud(cloud: Cloud) -> Trace:
    is_star = cloud.symbol is Symbol.STAR
    marker: dict[str, Any] = {
        "symbol": "star-open" if is_star else SYMBOLS[cloud.symbol],
        "size": 17 if is_star else 8,
        "color": cloud.colour.value,
        "line": {"width": 2 if is_star else 1, "color": cloud.colour.value},
    }
    return {
        "type": "scatter",
        "name": _legend(cloud.label),
        "x": [p.x for p in cloud.points],
        "y": [p.y for p in cloud.points],
        "mode": "markers",
        "marker": marker,
        "opacity": 0.4 if cloud.is_faint else 1.0,
        "text": ["<br>".join(map(escape, p.texts)) for p in cloud.points],
        "hovertemplate": "%{text}<extra></extra>",
        "error_x": _arms([(p.x, p.x_ends) for p in cloud.points], cloud),
        "error_y": _arms([(p.y, p.y_ends) for p in cloud.points], cloud),
    }


def _arms(ends: list[tuple[float, tuple[float, float] | None]], cloud: Cloud) -> dict[str, Any]:
    above = [0.0 if pair is None else pair[1] - value for value, pair in ends]
    below = [0.0 if pair is None else value - pair[0] for value, pair in ends]
    return {
        "type": "data",
        "array": above,
        "arrayminus": below,
        "visible": any(above) or any(below),
        "thickness": 1,
        "width": 3,
        "color": cloud.colour.value,
    }


def _limit(limit: Limit, panel: Panel) -> Trace:
    across = panel.y if limit.is_upright else panel.x
    ends, at = [across.low, across.high], [limit.at, limit.at]
    return {
        "type": "scatter",
        "name": _legend(limit.label),
        "x": at if limit.is_upright else ends,
        "y": ends if limit.is_upright else at,
        "mode": "lines",
        "line": {"color": limit.colour.value, "width": 1.6, "dash": "dash"},
        "hovertemplate": f"{escape(limit.label)}<extra></extra>",
    }


def _band(band: Band, x: Axis) -> Trace:
    return {
        "type": "scatter",
        "name": _legend(band.label),
        "x": [x.low, x.high, x.high, x.low],
        "y": [band.low, band.low, band.high, band.high],
        "mode": "lines",
        "fill": "toself",
        "line": {"width": 0, "color": band.colour.value},
        "opacity": 0.5,
        "hoverinfo": "name",
    }


def _legend(label: str) -> str:
    return "<br>".join(map(escape, wrap(label, LEGEND_COLUMNS)))


def _hover(panel: Panel, name: str) -> str:
    return (
        f"{name}<br>%{{x:.4g}} {escape(panel.x.label)}<br>%{{y:.4g}} {escape(panel.y.label)}"
        "<extra></extra>"
    )
