"""Sections of a tuning report's end: fresh draws, and what each level of the search took."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.spec.settings import Settings
from tuner.report.report import Section, Table
from tuner.search.budget import used_text


def final_sections(document: dict[str, Any]) -> Iterator[Section]:
    """Both; documents of earlier versions have neither."""
    if (fresh := document.get("fresh_draws")) is not None:
        yield _fresh(fresh, document["demoted"])
    if costs := document.get("costs"):
        yield _costs(costs, document["budget"])


def _fresh(fresh: dict[str, Any], demoted: list[dict[str, Any]]) -> Section:
    runs = tuple(
        (
            role.replace("_", "-"),
            str(Settings.from_json(drawn["settings"])),
            len(drawn["draws"]),
            drawn["num_met"],
            drawn["reason"],
        )
        for role, drawn in fresh["runs"].items()
    )
    gain = tuple(
        (key, 100 * change["share"], 100 * change["low"], 100 * change["high"])
        for key, change in fresh["gain"].items()
    )
    tables = [Table(columns=("who", "settings", "draws", "met the SLA", "reason"), rows=runs)]
    if gain:
        columns = ("number", "% over trial 0", "low (90 %)", "high (90 %)")
        tables.append(Table(columns=columns, rows=gain))
    return Section(
        name="fresh",
        heading="Measured again on fresh draws",
        lines=(
            f"{fresh['requests']} requests a draw ({fresh['fidelity']}), the same for all of them",
            *(f"demoted: {Settings.from_json(d['settings'])}: {d['reason']}" for d in demoted),
        ),
        tables=tuple(tables),
    )


def _costs(costs: list[dict[str, Any]], budget: dict[str, Any] | None) -> Section:
    columns = ("level", "runs", "seconds", "device_seconds")
    rows = tuple(tuple(row[name] for name in columns) for row in costs)
    lines: tuple[str, ...] = ()
    if budget is not None:
        lines = (
            used_text(budget),
            *(f"not reached: {line}" for line in budget["not_reached"]),
        )
    table = Table(columns=("level", "runs", "seconds", "device seconds"), rows=rows)
    return Section(name="costs", heading="What it took", lines=lines, tables=(table,))
