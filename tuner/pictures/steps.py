"""Panels of single steps, from ``steps`` of a document: modes, pieces, and degrees of TP."""

from __future__ import annotations

import itertools
from typing import Any

from tuner.pictures.over_time import MODE_COLOURS, RUNG_COLOURS
from tuner.pictures.picture import Axis, Bars, Colour, Limit, Line, Panel, axis_over

PIECE_COLOURS = {
    "products": Colour.BLUE,
    "attention": Colour.SKY,
    "elementwise": Colour.GREEN,
    "head": Colour.PURPLE,
    "communication": Colour.ORANGE,
    "launch": Colour.RED,
    "host": Colour.BLACK,
}
SHARE_COLOURS = {
    "compute": Colour.BLUE,
    "launch": Colour.RED,
    "communication": Colour.ORANGE,
    "host": Colour.BLACK,
}


def mode_times_panel(modes: dict[str, Any]) -> Panel:
    """Milliseconds of a step in each mode over its tokens, with the thresholds."""
    tokens = tuple(map(float, modes["tokens"]))
    between = [mode for mode in modes["ms"] if mode not in MODE_COLOURS]
    colours = MODE_COLOURS | dict(zip(between, itertools.cycle(RUNG_COLOURS), strict=False))
    lines = tuple(
        Line(label=mode, x=tokens, y=tuple(ms), colour=colours[mode])
        for mode, ms in modes["ms"].items()
    )
    limits = {"shift": modes["threshold_tokens"], **modes["rung_thresholds"]}
    times = [value for line in lines for value in line.y if value is not None]
    return Panel(
        x=Axis(label="tokens of the step (log axis)", low=0.9, high=1.1 * tokens[-1], is_log=True),
        y=Axis(
            label="step, ms (log axis)", low=0.8 * min(times), high=1.3 * max(times), is_log=True
        ),
        lines=lines,
        limits=tuple(
            Limit(label=f"up to {tokens} tokens in {mode}", at=float(tokens), is_upright=True)
            for mode, tokens in limits.items()
            if tokens
        ),
    )


def pieces_panel(pieces: list[dict[str, Any]]) -> Panel:
    """Where each told step's milliseconds go."""
    names = tuple(piece["step"] for piece in pieces)
    return Panel(
        x=Axis.of_names("step", names),
        y=axis_over("ms", [sum(piece["ms"].values()) for piece in pieces]),
        bars=tuple(
            Bars(
                label=name,
                y=tuple(max(0.0, piece["ms"][name]) for piece in pieces),
                colour=PIECE_COLOURS[name],
            )
            for name in pieces[0]["ms"]
            if any(piece["ms"][name] > 0 for piece in pieces)
        ),
    )


def scaling_panels(scaling: dict[str, Any]) -> tuple[Panel, ...]:
    """Shares of a step, and throughput per device, against the degree of TP."""
    degrees = scaling["degrees"]
    x = Axis.of_names("degree of tensor parallelism", tuple(f"tp={d['tp']}" for d in degrees))
    bars = tuple(
        Bars(
            label=name,
            y=tuple(max(0.0, degree["shares"][name]) for degree in degrees),
            colour=colour,
        )
        for name, colour in SHARE_COLOURS.items()
    )
    places = tuple(float(i) for i in range(len(degrees)))
    first = degrees[0]
    best = scaling["optimal_degree"] or scaling["most_per_device"]
    at = next(i for i, degree in enumerate(degrees) if degree["tp"] == best)
    word = "t_e" if scaling["optimal_degree"] else "most per device"
    lines = (
        Line(
            label="throughput per device, share of the best",
            x=places,
            y=tuple(degree["efficiency"] for degree in degrees),
            colour=Colour.GREEN,
        ),
        Line(
            label="speed-up of a step, share of the ideal",
            x=places,
            y=tuple(first["step_ms"] * first["tp"] / (d["step_ms"] * d["tp"]) for d in degrees),
            colour=Colour.BLUE,
        ),
    )
    most = max(value for line in lines for value in line.y if value is not None)
    return (
        Panel(x=x, y=Axis(label="share of a step", low=0.0, high=1.05), bars=bars),
        Panel(
            x=x,
            y=Axis(label="efficiency, share", low=0.0, high=1.08 * max(1.0, most)),
            lines=lines,
            limits=(Limit(label=f"{word}: tp={best}", at=float(at), is_upright=True),),
        ),
    )
