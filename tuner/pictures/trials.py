"""The picture of ``tune``: every trial's TTFT against its TPOT, and how the best came about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.constraint import Metric
from policies.numbers import counted
from policies.points import OperatingPoint, estimates_from_json
from policies.sla import Sla
from policies.verdict import MIN_CHANCE
from tuner.pictures.picture import (
    Axis,
    Cloud,
    Colour,
    Limit,
    Line,
    Panel,
    Picture,
    Point,
    axis_over,
    bounds_on,
)
from tuner.pictures.verdicts import (
    axis_label,
    chosen,
    clouds_of,
    ends_of,
    finite_of,
    key_of,
    texts_of,
)
from tuner.search.report import SCHEMA, TuningReport
from tuner.search.spec import TuningSpec
from tuner.search.trials import TrialRecord
from tuner.spec.errors import TunerError

TRIAL_GROUP = "trials"


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What is drawn of a report. ``chosen`` is the recommended point, else the nearest one."""

    spec: TuningSpec
    facts: tuple[str, ...]
    is_recommended: bool
    chosen: OperatingPoint | None
    trials: tuple[TrialRecord, ...]
    simulated: tuple[OperatingPoint, ...]


def tuning_picture(report: TuningReport) -> Picture:
    """The trials, the simulated design behind them, and the recommended settings as a star."""
    found = report.recommendation
    return _picture(
        _Found(
            spec=report.spec,
            facts=report.title.parts,
            is_recommended=found is not None,
            chosen=_nearest(report.infeasible) if found is None else found.point,
            trials=report.trials,
            simulated=tuple(map(_read_point, report.simulated)),
        )
    )


def picture_of_document(document: dict[str, Any]) -> Picture:
    """The same from the report's document.

    Raises:
        TunerError: a document that is no report of ``tune``.
    """
    if document.get("schema") != SCHEMA:
        raise TunerError(f"a report of schema {document.get('schema')!r} cannot be drawn")
    try:
        return _picture(_read(document))
    except (LookupError, TypeError, ValueError) as error:
        raise TunerError(f"a report without what tune writes cannot be drawn ({error})") from error


def _read(document: dict[str, Any]) -> _Found:
    found, title = document["recommendation"], document.get("title")  # the first had no title
    return _Found(
        spec=TuningSpec.from_json(document["spec"]),
        facts=tuple(title.split("; ", 2)) if title else (),
        is_recommended=found is not None,
        chosen=_nearest(document["infeasible"]) if found is None else _recommended(found),
        trials=tuple(map(TrialRecord.from_json, document["trials"])),
        simulated=tuple(map(_read_point, document["simulated"])),
    )


def _picture(found: _Found) -> Picture:
    spec, sla = found.spec, Sla.parse(found.spec.sla)
    answer = "nothing meets the SLA"
    if found.is_recommended and found.chosen is not None:
        answer = f"recommended is {found.chosen.settings}"
    return Picture(
        title=f"tune of {spec.model_dir} on {spec.hardware}: {answer}",
        facts=(*found.facts, f"at most {counted(spec.num_devices, 'device')}"),
        panels=(
            _latency_panel(found, sla),
            _chance_panel(found.trials),
            _device_panel(found.trials, spec.num_devices),
        ),
    )


def _nearest(infeasible: dict[str, Any] | None) -> OperatingPoint | None:
    raw = None if infeasible is None else infeasible["closest"]
    return None if raw is None else _read_point(raw)


def _recommended(raw: dict[str, Any]) -> OperatingPoint:
    return _read_point({**raw, "metrics": raw["interval"][raw["fidelity"]]})


def _latency_panel(found: _Found, sla: Sla) -> Panel:
    keys = key_of(sla, Metric.TPOT_MS), key_of(sla, Metric.TTFT_MS)
    trials = [(t, point) for t in found.trials if (point := t.point) is not None]
    numbers = {id(point): trial.number for trial, point in trials}

    def place(point: OperatingPoint) -> Point | None:
        placed = _place(point, sla, keys)
        if placed is None:
            return None
        return replace(placed, texts=(f"trial {numbers[id(point)]}", *placed.texts))

    clouds = (*_design(found, sla, keys), *clouds_of([p for _, p in trials], sla, place))
    clouds = (*clouds, *_star(found, sla, keys))
    upright = tuple(
        replace(limit, is_upright=True, colour=Colour.PURPLE)
        for limit in bounds_on(sla, Metric.TPOT_MS)
    )
    flat = bounds_on(sla, Metric.TTFT_MS)
    return Panel(
        x=_axis_over(keys[0], clouds, upright, lambda p: (p.x, *(p.x_ends or ()))),
        y=_axis_over(keys[1], clouds, flat, lambda p: (p.y, *(p.y_ends or ()))),
        clouds=clouds,
        limits=(*flat, *upright),
    )


def _star(found: _Found, sla: Sla, keys: tuple[str, str]) -> tuple[Cloud, ...]:
    """The recommended settings, or those that come nearest to the SLA."""
    role = "recommended" if found.is_recommended else "nearest"
    point = found.chosen
    placed = None if point is None else _place(point, sla, keys)
    if point is None or placed is None:
        return ()
    star = replace(placed, x_ends=None, y_ends=None)
    return (chosen(f"{role}: {point.settings}", star),)


def _axis_over(
    key: str,
    clouds: Sequence[Cloud],
    limits: Sequence[Limit],
    values_of: Callable[[Point], tuple[float, ...]],
) -> Axis:
    values = [value for cloud in clouds for point in cloud.points for value in values_of(point)]
    return axis_over(axis_label(key), values, limits=[limit.at for limit in limits])


def _place(point: OperatingPoint, sla: Sla, keys: tuple[str, str]) -> Point | None:
    tpot, ttft = (finite_of(point.metrics, key) for key in keys)
    if tpot is None or ttft is None:
        return None
    return Point(
        x=tpot.value,
        y=ttft.value,
        x_ends=ends_of(tpot),
        y_ends=ends_of(ttft),
        texts=texts_of(point, sla),
    )


def _design(found: _Found, sla: Sla, keys: tuple[str, str]) -> tuple[Cloud, ...]:
    """The simulated points that trials were chosen from."""
    every = (_place(point, sla, keys) for point in found.simulated)
    placed = [place for place in every if place is not None]
    if not placed:
        return ()
    bare = tuple(replace(place, x_ends=None, y_ends=None) for place in placed)
    label = f"simulated before the trials ({len(bare)})"
    return (Cloud(label=label, points=bare, colour=Colour.SKY, is_faint=True),)


def _read_point(raw: dict[str, Any]) -> OperatingPoint:
    return OperatingPoint(
        settings=Settings.from_json(raw["settings"]),
        fidelity=Fidelity(raw["fidelity"]),
        metrics=estimates_from_json(raw["metrics"]),
    )


def _chance_panel(trials: Sequence[TrialRecord]) -> Panel:
    """P(SLA met) of each trial, and the best so far."""
    known = [(t, t.sla_probability) for t in trials if t.sla_probability is not None]
    points = tuple(
        Point(
            x=float(t.number),
            y=chance,
            texts=(f"trial {t.number}: {t.settings}", f"P(SLA met) {chance:.2f}", t.reason),
        )
        for t, chance in known
    )
    chances = [chance for _, chance in known]
    best = Line(
        label="best so far",
        x=tuple(point.x for point in points),
        y=tuple(max(chances[: i + 1]) for i in range(len(chances))),
        colour=Colour.BLUE,
        is_step=True,
    )
    least = Limit(label=f"least P to be recommended {MIN_CHANCE:g}", at=MIN_CHANCE)
    return Panel(
        x=_trial_axis(trials),
        y=Axis(label="P(SLA met), share", low=-0.03, high=1.05),
        lines=(best,),
        clouds=(Cloud(label="trial", points=points, colour=Colour.BLUE),) if points else (),
        limits=(least,),
        x_group=TRIAL_GROUP,
    )


def _device_panel(trials: Sequence[TrialRecord], num_devices: int) -> Panel:
    """Devices of each trial, and of the cheapest so far that may be recommended."""
    cheapest: float | None = None
    so_far: list[float | None] = []
    for trial in trials:
        devices = float(trial.settings.plan.world_size)
        if trial.is_feasible:
            cheapest = devices if cheapest is None else min(cheapest, devices)
        so_far.append(cheapest)
    points = tuple(
        Point(
            x=float(t.number),
            y=float(t.settings.plan.world_size),
            texts=(f"trial {t.number}: {t.settings}", t.reason),
        )
        for t in trials
    )
    numbers = tuple(point.x for point in points)
    best = Line(
        label="fewest so far that may be recommended",
        x=numbers,
        y=tuple(so_far),
        colour=Colour.GREEN,
        is_step=True,
    )
    return Panel(
        x=_trial_axis(trials),
        y=Axis(label="devices", low=0.0, high=num_devices + 0.4, is_whole=True),
        lines=(best,),
        clouds=(Cloud(label="trial", points=points, colour=Colour.BLUE),) if points else (),
        x_group=TRIAL_GROUP,
    )


def _trial_axis(trials: Sequence[TrialRecord]) -> Axis:
    return Axis(label="trial", low=-0.5, high=len(trials) - 0.5, is_whole=True)
