"""The second scene: the load rises and falls again, and devices follow it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from rich.table import Table

from api.demo.scenes import Day, Phase
from api.demo.stage import Stage, capacity_in
from api.documents.policy import settings_in
from api.schemas.serving import PolicyVersionView
from engine.spec.measurement import Measurement
from policies.attainment import judge
from policies.sla import Sla
from store.models import AckState


@dataclass(frozen=True, kw_only=True)
class Held:
    """From ``at_s`` on the engine has ``devices``, those of starting and leaving replicas too."""

    at_s: float
    devices: int


def play(stage: Stage, day: Day) -> str:
    """An engine is tuned for a calm load with a capacity table; then the load moves. Returns the
    engine's address (it is still running)."""
    stage.console.rule(f"[bold]{day.title}")
    engine_id, url = stage.start_engine(day.cast)
    recommendation = stage.tune(day.cast, day.workload, day.sla)
    if recommendation is None:
        return url
    table = capacity_in(recommendation)
    if table is not None:
        stage.print_capacity(table)
    stage.apply(recommendation, engine_id)
    if table is not None:
        day = day.beside(table, stage.settings(engine_id).plan)
    stage.hurry(engine_id, day.guards)
    workload = day.load(stage.folder, stage.seed)
    started = datetime.now(UTC)
    measured = stage.load(day.cast, workload, url, "a day in eight minutes")
    first_s = min(t.scheduled_s for t in measured.timings) - workload.arrivals[0].arrival_s
    versions = stage.client.list_policy_versions(engine_id)
    _print_moves(stage, day, versions, started)
    _print_phases(stage, day, list(held(versions, started)), measured, first_s)
    return url


def held(versions: Sequence[PolicyVersionView], since: datetime) -> Iterator[Held]:
    """How many devices an engine held from when on, in seconds after ``since``, as its policy
    versions tell it. While a change is under way both those of before and those of after."""
    before: int | None = None
    for version in sorted(versions, key=lambda v: v.version):
        if version.ack_state != AckState.APPLIED or version.acknowledged_at is None:
            continue
        devices = _devices(version)
        if before is not None and devices > before:
            yield Held(at_s=(version.created_at - since) / timedelta(seconds=1), devices=devices)
        elif before is None or devices < before:
            at_s = (version.acknowledged_at - since) / timedelta(seconds=1)
            yield Held(at_s=at_s, devices=devices)
        before = devices


def device_seconds(spells: Sequence[Held], from_s: float, to_s: float) -> float:
    """Between two times; before the first spell as many as in it."""
    starts = [replace(spells[0], at_s=min(spells[0].at_s, from_s)), *spells[1:]]
    ends = [*(spell.at_s for spell in spells[1:]), to_s]
    return sum(
        spell.devices * max(0.0, min(end, to_s) - max(spell.at_s, from_s))
        for spell, end in zip(starts, ends, strict=True)
    )


def part_of(measured: Measurement, from_s: float, to_s: float) -> Measurement:
    """The requests that were due between two times."""
    inside = tuple(t for t in measured.timings if from_s <= t.scheduled_s < to_s)
    return replace(measured, timings=inside)


def _print_moves(
    stage: Stage, day: Day, versions: Sequence[PolicyVersionView], started: datetime
) -> None:
    """What was changed during the day, and why."""
    spells = list(_phases(day))
    for before, after in pairwise(sorted(versions, key=lambda v: v.version)):
        at_s = (after.created_at - started) / timedelta(seconds=1)
        if at_s < 0 or _devices(before) == _devices(after):
            continue
        name = next((p.name for p, from_s, to_s in spells if from_s <= at_s < to_s), "afterwards")
        took = "" if after.ack_seconds is None else f", in force {after.ack_seconds:.0f} s later"
        stage.console.print(
            f"  {at_s:.0f} s ({name}): {_devices(before)} -> {_devices(after)} devices{took}: "
            f"{after.reason}",
            highlight=False,
        )


def _print_phases(
    stage: Stage, day: Day, spells: Sequence[Held], measured: Measurement, first_s: float
) -> None:
    sla = Sla.parse(day.sla)
    table = Table(
        *("when", "req/s", "devices at the end", "attainment", "device hours"),
        title=f"SLA attainment and devices, {day.sla}",
    )
    total_s = 0.0
    for phase, from_s, to_s in _phases(day):
        report = judge(sla, part_of(measured, first_s + from_s, first_s + to_s))
        used_s = device_seconds(spells, from_s, to_s)
        total_s += used_s
        attainment = "-" if report.attainment is None else f"{report.attainment:.3f}"
        last = [spell.devices for spell in spells if spell.at_s < to_s]
        table.add_row(
            phase.name,
            f"{phase.rate_rps:g}",
            str(last[-1] if last else spells[0].devices),
            attainment,
            f"{used_s / 3600:.2f}",
        )
    whole = judge(sla, measured)
    table.add_row("all", "", "", f"{whole.attainment or 0.0:.3f}", f"{total_s / 3600:.2f}")
    most = max(spell.devices for spell in spells)
    seconds = sum(phase.seconds for phase in day.phases)
    table.add_row("holding the most all along", "", str(most), "", f"{most * seconds / 3600:.2f}")
    stage.console.print(table)


def _phases(day: Day) -> Iterator[tuple[Phase, float, float]]:
    at_s = 0.0
    for phase in day.phases:
        yield phase, at_s, at_s + phase.seconds
        at_s += phase.seconds


def _devices(version: PolicyVersionView) -> int:
    return settings_in(version.document).plan.world_size
