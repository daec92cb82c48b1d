"""Sections of single steps: modes, pieces, and how far tensor parallelism pays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tuner.pictures.steps import mode_times_panel, pieces_panel, scaling_panels
from tuner.report.report import Section, Table

MOST_MODE_ROWS = 12


def step_sections(steps: dict[str, Any] | None) -> Iterator[Section]:
    """What a document says of single steps; nothing where it says nothing."""
    if steps is None:
        return
    if (modes := steps["modes"]) is not None:
        yield _modes(modes, steps["plan"])
    yield _pieces(steps)
    yield _scaling(steps["scaling"])


def _modes(modes: dict[str, Any], plan: str) -> Section:
    names = list(modes["ms"])
    every = -(-len(modes["tokens"]) // MOST_MODE_ROWS)
    rows = tuple(
        (tokens, *(modes["ms"][name][i] for name in names), _fastest(modes, i))
        for i, tokens in enumerate(modes["tokens"])
        if i % every == 0
    )
    lines = [f"steps of {plan}, the ranks' time; each in the mode that the thresholds give it"]
    if modes["threshold_tokens"] is None:
        lines = [f"steps of {plan}, the ranks' time; modes are not chosen by a threshold"]
    return Section(
        name="modes",
        heading="Step time of each mode",
        lines=tuple(lines),
        tables=(Table(columns=("tokens", *(f"{n} ms" for n in names), "fastest"), rows=rows),),
        panels=(mode_times_panel(modes),),
    )


def _fastest(modes: dict[str, Any], place: int) -> str:
    names: list[str] = list(modes["ms"])
    return min(names, key=lambda name: float(modes["ms"][name][place]))


def _pieces(steps: dict[str, Any]) -> Section:
    pieces = steps["pieces"]
    names = list(pieces[0]["ms"])
    rows = tuple(
        (piece["step"], *(piece["ms"][name] for name in names), piece["step_ms"])
        for piece in pieces
    )
    return Section(
        name="pieces",
        heading="Where a step's time goes",
        lines=(f"milliseconds in {steps['plan']}; host is what no rank's work covers",),
        tables=(Table(columns=("step", *names, "whole"), rows=rows),),
        panels=(pieces_panel(pieces),),
    )


def _scaling(scaling: dict[str, Any]) -> Section:
    degrees = scaling["degrees"]
    rows = tuple(
        (
            f"tp={d['tp']}",
            d["step_ms"],
            d["shares"]["communication"],
            d["shares"]["host"],
            d["gain"],
            d["num_seqs"],
            d["throughput_tokens_per_s"],
            d["efficiency"],
        )
        for d in degrees
    )
    columns = ("degree", "step ms", "communication", "host", "gain of the doubling",
               "sequences that fit", "tokens/s", "efficiency")  # fmt: skip
    return Section(
        name="scaling",
        heading="How far tensor parallelism pays",
        lines=(
            scaling["text"],
            "t_e is the degree whose instances, filled with sequences, carry most together; "
            "efficiency is throughput per device, as a share of the best degree's",
        ),
        tables=(Table(columns=columns, rows=rows),) if rows else (),
        panels=scaling_panels(scaling) if degrees else (),
    )
