"""Pictures as files that do not move: SVG, PNG and PDF, by Matplotlib."""

from __future__ import annotations

import math
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis as DrawnAxis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from tuner.pictures.picture import LEGEND_COLUMNS, Axis, Cloud, Panel, Picture, Symbol, Values

INCHES_WIDE = 11.0
PANEL_INCHES = 2.1
LINE_INCHES = 0.19
TITLE_COLUMNS = 125
TICK_COLUMNS = 16
MARKERS = {Symbol.DISC: "o", Symbol.RING: "o", Symbol.CROSS: "x", Symbol.STAR: "*"}
# Equal pictures give equal bytes, and text stays text.
RC: dict[Any, Any] = {"svg.hashsalt": "gearshift", "svg.fonttype": "none"}
NO_DATES: dict[str, dict[str, Any]] = {
    ".svg": {"Date": None, "Creator": None},
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def write_still(path: Path, picture: Picture) -> None:
    """Draw into ``path``, in the format of its suffix."""
    suffix = path.suffix.lower()
    with matplotlib.rc_context(RC):
        figure = _figure(picture)
        figure.savefig(path, format=suffix[1:], dpi=110, metadata=NO_DATES[suffix])


def _figure(picture: Picture) -> Figure:
    # The object interface: no pyplot, so no display, no global state.
    facts = [line for fact in picture.facts for line in wrap(fact, TITLE_COLUMNS)]
    head = LINE_INCHES * (len(facts) + 2)
    height = head + PANEL_INCHES * len(picture.panels)
    figure = Figure(figsize=(INCHES_WIDE, height), layout="constrained")
    figure.suptitle("\n".join([_plain(picture.title), *map(_plain, facts)]), fontsize="medium")
    grid = figure.subplots(len(picture.panels), 1, squeeze=False)
    for axes, panel in zip(grid[:, 0], picture.panels, strict=True):
        _draw(axes, panel)
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    _set_axes(axes, panel)
    for band in panel.bands:
        axes.axhspan(
            band.low,
            band.high,
            color=band.colour.value,
            alpha=0.18,
            lw=0,
            label=_legend(band.label),
        )
    if panel.areas:
        axes.stackplot(
            panel.areas[0].x,
            [area.y for area in panel.areas],
            labels=[_legend(area.label) for area in panel.areas],
            colors=[area.colour.value for area in panel.areas],
            step="post",
            alpha=0.45,
        )
    floor = [0.0] * len(panel.x.names)
    for bars in panel.bars:
        axes.bar(
            range(len(bars.y)),
            bars.y,
            bottom=floor,
            color=bars.colour.value,
            label=_legend(bars.label),
        )
        floor = [low + high for low, high in zip(floor, bars.y, strict=True)]
    for line in panel.lines:
        style = {"drawstyle": "steps-post"} if line.is_step else {"marker": ".", "markersize": 3}
        axes.plot(
            line.x,
            _with_gaps(line.y),
            color=line.colour.value,
            lw=1.1,
            label=_legend(line.label),
            **style,
        )
    for cloud in panel.clouds:
        _draw_cloud(axes, cloud)
    for limit in panel.limits:
        across = axes.axvline if limit.is_upright else axes.axhline
        across(limit.at, color=limit.colour.value, ls="--", lw=1.2, label=_legend(limit.label))
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize="small", frameon=False)


def _set_axes(axes: Axes, panel: Panel) -> None:
    axes.set_xlabel(_plain(panel.x.label), fontsize="small")
    axes.set_ylabel(_plain(panel.y.label), fontsize="small")
    axes.set_xscale(_scale(panel.x))
    axes.set_yscale(_scale(panel.y))
    axes.set_xlim(panel.x.low, panel.x.high)
    axes.set_ylim(panel.y.low, panel.y.high)
    axes.tick_params(labelsize="small")
    for scale, axis in ((panel.x, axes.xaxis), (panel.y, axes.yaxis)):
        _set_ticks(scale, axis)
    axes.grid(visible=True, alpha=0.3)


def _set_ticks(axis: Axis, drawn: DrawnAxis) -> None:
    if axis.names:
        labels = ["\n".join(map(_plain, wrap(name, TICK_COLUMNS))) for name in axis.names]
        drawn.set_ticks(range(len(axis.names)), labels)
    if axis.is_whole:
        drawn.set_major_locator(MaxNLocator(integer=True))
    if axis.is_log:
        # As 20, 50, 100, and not as powers that run into each other.
        drawn.set_major_locator(LogLocator(subs=(1, 2, 5)))
        drawn.set_major_formatter("{x:g}")
        drawn.set_minor_formatter(NullFormatter())


def _draw_cloud(axes: Axes, cloud: Cloud) -> None:
    x, y = [p.x for p in cloud.points], [p.y for p in cloud.points]
    x_arms = [_arms(p.x, p.x_ends) for p in cloud.points]
    y_arms = [_arms(p.y, p.y_ends) for p in cloud.points]
    is_star = cloud.symbol is Symbol.STAR
    axes.errorbar(
        x,
        y,
        xerr=list(zip(*x_arms, strict=True)) if any(map(any, x_arms)) else None,
        yerr=list(zip(*y_arms, strict=True)) if any(map(any, y_arms)) else None,
        fmt=MARKERS[cloud.symbol],
        color=cloud.colour.value,
        mfc=cloud.colour.value if cloud.symbol is Symbol.DISC else "none",
        ms=14 if is_star else 5,
        mew=1.8 if is_star else 1.0,
        # A star lies around the point it marks.
        zorder=5 if is_star else 2 if cloud.is_faint else 3,
        elinewidth=0.8,
        alpha=0.4 if cloud.is_faint else 1.0,
        label=_legend(cloud.label),
    )


def _arms(value: float, ends: tuple[float, float] | None) -> tuple[float, float]:
    return (0.0, 0.0) if ends is None else (value - ends[0], ends[1] - value)


def _scale(axis: Axis) -> str:
    return "log" if axis.is_log else "linear"


def _with_gaps(values: Values) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _legend(label: str) -> str:
    return "\n".join(map(_plain, wrap(label, LEGEND_COLUMNS)))


def _plain(text: str) -> str:
    """Text as it is: between two dollar signs Matplotlib would set mathematics."""
    return text.replace("$", r"\$")
