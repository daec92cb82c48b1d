"""The report of ``plan --out``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.numbers import counted, short
from policies.points import Estimate, OperatingPoint, estimates_from_json
from policies.sla import Sla
from tuner.report.points import point_sections
from tuner.report.report import Section, Table
from tuner.report.steps import step_sections
from tuner.search.report import infeasible_text

MOST_FAILING = 40


def plan_sections(document: dict[str, Any]) -> Iterator[Section]:
    """All of them."""
    yield _answer(document)
    yield from point_sections(_points(document), Sla.parse(document["sla"]))
    if (found := document["infeasible"]) is not None:
        yield from ways_sections(found)
    yield _failing(document)
    yield from step_sections(document.get("steps"))


def _answer(document: dict[str, Any]) -> Section:
    sla = Sla.parse(document["sla"])
    keys = [constraint.key for constraint in sla.per_run]
    rows = tuple(
        (
            role,
            str(Settings.from_json(best["settings"])),
            best["num_devices"],
            best["sla_probability"],
            *(estimate_text(best["metrics"].get(key)) for key in keys),
        )
        for role, best in document["best"].items()
    )
    lines = [
        f"{role}: {Settings.from_json(best['settings'])}: {best['reason']}"
        for role, best in document["best"].items()
    ]
    if document["infeasible"] is not None:
        lines = [infeasible_text(document["infeasible"])]
    columns = ("choice", "settings", "devices", "P(SLA met)", *keys)
    return Section(
        name="answer",
        heading="Answer",
        lines=tuple(lines),
        tables=(Table(columns=columns, rows=rows),) if rows else (),
    )


def estimate_text(raw: dict[str, float | None] | None) -> str | None:
    """A number with its interval."""
    if raw is None or raw["value"] is None:
        return None
    low, high = raw["low"], raw["high"]
    if low is None or high is None or low == high:
        return short(raw["value"])
    return f"{short(raw['value'])} ({short(low)} .. {short(high)})"


def _points(document: dict[str, Any]) -> list[OperatingPoint]:
    """All that ran to the end; the judged ones with their intervals."""
    judged = [read_point(raw) for raw in (*document["feasible"], *document["near_misses"])]
    known = {point.settings for point in judged}
    tried = [
        OperatingPoint(
            settings=settings,
            fidelity=Fidelity.SIMULATED,
            metrics={k: Estimate.exact(v) for k, v in raw["metrics"].items() if v is not None},
        )
        for raw in document["tried"]
        if raw["judged_on"] == "whole"
        and (settings := Settings.from_json(raw["settings"])) not in known
    ]
    return [*judged, *tried]


def read_point(raw: dict[str, Any]) -> OperatingPoint:
    """A point of a document."""
    return OperatingPoint(
        settings=Settings.from_json(raw["settings"]),
        fidelity=Fidelity(raw["fidelity"]),
        metrics=estimates_from_json(raw["metrics"]),
        told_chance=raw.get("sla_probability"),
    )


def ways_sections(found: dict[str, Any]) -> Iterator[Section]:
    """What stands in the way, and what would help."""
    lines = [found["verdict"]] if found.get("verdict") else []
    if (load := found.get("highest_load")) is not None:
        name = "clients" if load["concurrency"] is not None else "requests/s"
        value = load["concurrency"] if load["concurrency"] is not None else load["rate_rps"]
        lines.append(f"highest load within the SLA here: {short(float(value))} {name}")
    if (devices := found.get("enough_devices")) is not None:
        lines.append(f"the load as asked needs {counted(devices['num_devices'], 'device')}")
    rows = tuple(
        (way["constraint"], way["relaxed"], way["price"], way.get("reason"))
        for way in found["relaxations"]
        if way["relaxed"] is not None or way.get("reason")
    )
    columns = ("constraint", "relaxed to", "price, share of the bound", "remark")
    yield Section(
        name="ways",
        heading="What would help",
        lines=tuple(lines),
        tables=(Table(columns=columns, rows=rows),) if rows else (),
    )


def _failing(document: dict[str, Any]) -> Section:
    failing = document["failing"]
    rows = tuple(
        (each["plan"], each["why"], each["judged_on"], each["detail"])
        for each in failing[:MOST_FAILING]
    )
    left = len(failing) - len(rows)
    return Section(
        name="failing",
        heading="Plans that fail, and why",
        lines=(f"{left} more are in the document",) if left > 0 else (),
        tables=(Table(columns=("plan", "fails by", "judged on", "detail"), rows=rows),)
        if rows
        else (),
    )
