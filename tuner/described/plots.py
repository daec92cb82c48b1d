"""Pictures of results. Matplotlib is an extra, imported when something is drawn."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.simulation.timeline import StepLine, Timeline
from tuner.spec.errors import TunerError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png", ".html")


def check_plot(path: Path) -> None:
    """Refuse a picture that could not be written, before hours of simulation.

    Raises:
        TunerError: another kind of file, or matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise TunerError(f"plot {path}: write a file that ends in {', '.join(SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401  # only whether it is there
    except ImportError as error:
        raise TunerError("plots need matplotlib: pip install 'gearshift[plots]'") from error


def plot_timeline(path: Path, timeline: Timeline, steps: StepLine, *, title: str) -> None:
    """Draw load, running and waiting requests, latencies and the modes' shares into ``path``.

    The same timeline gives the same bytes of SVG and HTML.

    Raises:
        TunerError: as :func:`check_plot`.
    """
    check_plot(path)
    figure = _figure(timeline, steps, title)
    match path.suffix.lower():
        case ".png":
            figure.savefig(path, format="png", dpi=110, metadata={"Software": None})
        case ".svg":
            path.write_text(_svg(figure))
        case _:
            path.write_text(_html(title, _svg(figure)))


def _figure(timeline: Timeline, steps: StepLine, title: str) -> Figure:
    # The object interface: no pyplot, so no display, no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 10), layout="constrained")
    load, active, modes, ttft, tpot = figure.subplots(5, 1, sharex=True)
    starts = list(timeline.starts_s)
    _steps(load, starts, [n / timeline.bin_s for n in timeline.arrived], "arrived")
    _steps(load, starts, [n / timeline.bin_s for n in timeline.finished], "finished")
    load.set_ylabel("requests/s")
    _steps(active, starts, list(timeline.waiting), "waiting for a first token")
    _steps(active, starts, list(timeline.running), "running")
    active.set_ylabel("requests")
    _latency(ttft, starts, timeline.ttft_p50_ms, timeline.ttft_p95_ms, "TTFT, ms")
    _latency(tpot, starts, timeline.tpot_p50_ms, timeline.tpot_p95_ms, "TPOT, ms")
    tpot.set_xlabel("seconds since the first arrival (latencies: by arrival)")
    _shares(modes, starts, steps)
    for axes in (load, active, modes, ttft, tpot):
        axes.set_xlim(0, max(starts[-1] + timeline.bin_s, timeline.bin_s))
        axes.grid(visible=True, alpha=0.3)
        axes.legend(loc="upper right", fontsize="small")
    figure.suptitle(title)
    return figure


def _steps(axes: Axes, starts: list[float], values: list[float], label: str) -> None:
    axes.step(starts, values, where="post", label=label, linewidth=1.1)


def _latency(
    axes: Axes,
    starts: list[float],
    p50: tuple[float | None, ...],
    p95: tuple[float | None, ...],
    label: str,
) -> None:
    for name, values in (("p50", p50), ("p95", p95)):
        known = [math.nan if value is None else value for value in values]
        axes.plot(starts, known, ".-", label=name, linewidth=0.9, markersize=3)
    axes.set_ylabel(label)
    axes.set_ylim(0, 1.1 * max((v for v in (*p50, *p95) if v is not None), default=1.0))


def _shares(axes: Axes, starts: list[float], steps: StepLine) -> None:
    """Share of step time by mode and KV cache in use; the legend has the whole run's shares."""
    total = sum(map(sum, steps.busy_s.values()))
    modes = [mode for mode, busy_s in steps.busy_s.items() if sum(busy_s) > 0]
    labels = [f"{mode} {100 * sum(steps.busy_s[mode]) / total:.1f} %" for mode in modes]
    shares = [[share or 0.0 for share in steps.share(mode)] for mode in modes]
    if modes:
        axes.stackplot(starts, shares, labels=labels, step="post", alpha=0.5)
    usage = [math.nan if value is None else value for value in steps.kv_usage]
    axes.plot(starts, usage, ".-", color="black", label="KV in use", linewidth=0.9, markersize=3)
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("share of step time")


def _svg(figure: Figure) -> str:
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "gearshift", "svg.fonttype": "none"}):
        buffer = io.StringIO()
        metadata: dict[str, Any] = {"Date": None, "Creator": None}
        figure.savefig(buffer, format="svg", metadata=metadata)
    return buffer.getvalue()


def _html(title: str, svg: str) -> str:
    from html import escape

    picture = svg[svg.index("<svg") :]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title>'
    return f"<!doctype html>\n<html><head>{head}</head>\n<body>\n{picture}</body></html>\n"
