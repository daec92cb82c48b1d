"""The report of ``tune --out``, and of a tuning job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from engine.spec.settings import Settings
from policies.numbers import counted
from policies.sla import Sla
from tuner.pictures.picture import Cloud, Colour, Line, Panel, Point, axis_over
from tuner.pictures.trials import picture_of_document
from tuner.pictures.verdicts import axis_label, latency_keys
from tuner.report.finals import final_sections
from tuner.report.planned import estimate_text, read_point, ways_sections
from tuner.report.points import point_sections
from tuner.report.report import Section, Table
from tuner.report.steps import step_sections
from tuner.search.report import infeasible_text
from tuner.search.trials import TrialRecord


def tune_sections(document: dict[str, Any]) -> Iterator[Section]:
    """All of them."""
    sla = Sla.parse(document["spec"]["sla"])
    trials = [TrialRecord.from_json(raw) for raw in document["trials"]]
    yield _answer(document, sla)
    yield _trials(document, trials, sla)
    if (section := _predicted(trials, sla)) is not None:
        yield section
    # For settings that were tried twice, the later trial counts; what ran counts before the design.
    points = {p.settings: p for p in map(read_point, document["simulated"])}
    points |= {p.settings: p for trial in trials if (p := trial.point) is not None}
    yield from point_sections(list(points.values()), sla)
    if (found := document["infeasible"]) is not None:
        yield from ways_sections(found)
    if (schedule := document.get("schedule")) is not None:
        yield _schedule(schedule)
    yield from step_sections(document.get("steps"))
    yield from final_sections(document)


def _answer(document: dict[str, Any], sla: Sla) -> Section:
    found = document["recommendation"]
    if found is None:
        lines: tuple[str, ...] = (infeasible_text(document["infeasible"]),)
        return Section(name="answer", heading="Answer", lines=lines)
    keys = [constraint.key for constraint in sla.per_run]
    rows = tuple(
        (fidelity, *(estimate_text(metrics.get(key)) for key in keys))
        for fidelity, metrics in found["interval"].items()
    )
    return Section(
        name="answer",
        heading="Answer",
        lines=(
            f"recommended: {Settings.from_json(found['settings'])}, "
            f"{counted(found['num_devices'], 'device')}, P(SLA met) {found['sla_probability']:.2f}",
            found["explanation"],
        ),
        tables=(Table(columns=("fidelity", *keys), rows=rows),),
    )


def _trials(document: dict[str, Any], trials: Sequence[TrialRecord], sla: Sla) -> Section:
    keys = [constraint.key for constraint in sla.per_run]
    rows = tuple(
        (
            trial.number,
            str(trial.settings),
            trial.fidelity.value,
            trial.state.value,
            trial.sla_probability,
            *(estimate_text(trial.metrics.get(key)) for key in keys),
            trial.reason,
        )
        for trial in trials
    )
    columns = ("trial", "settings", "fidelity", "state", "P(SLA met)", *keys, "reason")
    return Section(
        name="trials",
        heading="Trials",
        tables=(Table(columns=columns, rows=rows),),
        panels=picture_of_document(document).panels,
    )


def _predicted(trials: Sequence[TrialRecord], sla: Sla) -> Section | None:
    """What simulation said beforehand, beside what was measured; None if nothing ran."""
    keys = latency_keys(sla)
    ran = [trial for trial in trials if trial.predicted and trial.document is not None]
    rows = [
        (trial.number, key, said["value"], seen["value"], seen["value"] / said["value"] - 1)
        for trial in ran
        for key in keys
        if (said := trial.predicted.get(key)) and (seen := trial.metrics.get(key))
        if said["value"] and seen["value"]
    ]
    if not rows:
        return None
    columns = ("trial", "number", "predicted", "measured", "measured over predicted")
    panels = (
        _predicted_panel([t for t in ran if key in t.predicted and key in t.metrics], key)
        for key in keys
    )
    return Section(
        name="predicted",
        heading="Predicted against measured",
        tables=(Table(columns=columns, rows=tuple(rows)),),
        panels=tuple(panel for panel in panels if panel is not None),
    )


def _predicted_panel(trials: Sequence[TrialRecord], key: str) -> Panel | None:
    points = [
        Point(x=said, y=seen, texts=(f"trial {trial.number}: {trial.settings}",))
        for trial in trials
        if (said := trial.predicted[key]["value"]) and (seen := trial.metrics[key]["value"])
    ]
    if not points:
        return None
    ends = [end for point in points for end in (point.x, point.y)]
    x = axis_over(f"predicted {axis_label(key)}", ends)
    y = axis_over(f"measured {axis_label(key)}", ends)
    equal = Line(label="equal", x=(x.low, x.high), y=(x.low, x.high), colour=Colour.BLACK)
    return Panel(
        x=x,
        y=y,
        lines=(equal,),
        clouds=(Cloud(label="trial", points=tuple(points), colour=Colour.BLUE),),
    )


def _schedule(schedule: dict[str, Any]) -> Section:
    rows = tuple(
        (
            band["rate_rps_low"],
            band["rate_rps_high"],
            str(Settings.from_json(band["settings"])),
            band["headroom"],
        )
        for band in schedule["bands"]
    )
    columns = ("from requests/s", "to requests/s", "settings", "headroom")
    return Section(
        name="schedule",
        heading="Settings by load",
        lines=("what a controller moves along as the load changes",),
        tables=(Table(columns=columns, rows=rows),),
    )
