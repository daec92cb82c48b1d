"""``gearshift jobs trials``, ``pareto`` and ``importance``: what a tuning job has found so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from api.cli.common import print_json, print_line
from api.cli.control_plane import ControlPlane
from api.cli.grouped import grouped
from api.cli.jobs import IdArgument
from api.cli.tables import print_rows

if TYPE_CHECKING:
    from api.schemas.analysis import FrontPoint, KnobView
    from api.schemas.tuning import TrialView
    from engine.spec.settings import Settings

Json = dict[str, Any]


@grouped()
def trials(job_id: IdArgument, plane: ControlPlane) -> None:
    """List a tuning job's trials so far."""
    from policies.sla import Sla

    with plane.client() as client:
        sla = Sla.parse(client.get_tuning_job(job_id).spec["sla"])
        found = client.list_trials(job_id)
    keys = [bound.key for bound in sla.per_run]
    headings = ("trial", "settings", "state", "what the SLA bounds", "P(met)", "why")
    plane.tell_rows("trials", found, headings, lambda row: _trial_cells(row, keys))


@grouped()
def pareto(job_id: IdArgument, plane: ControlPlane) -> None:
    """List the settings that no other of a tuning job beats in devices and all that its SLA
    bounds."""
    with plane.client() as client:
        found = client.get_pareto_front(job_id)
    if plane.as_json:
        print_json(found.to_json())
        return
    keys = [aim.key for aim in found.aims]
    headings = ("trial", "devices", "settings", "what the SLA bounds", "P(met)", "fidelity")
    print_rows(headings, (_front_cells(point, keys) for point in found.front))
    print_line(f"{len(found.front)} of {found.num_points} settings, which no other beats in all of")
    print_line(", ".join(keys))


@grouped()
def importance(job_id: IdArgument, plane: ControlPlane) -> None:
    """Say how much each knob had to do with latency among a tuning job's trials."""
    with plane.client() as client:
        found = client.get_importance(job_id)
    if plane.as_json:
        print_json(found.to_json())
        return
    headings = ("knob", "share", "latency over the SLA's bounds by value")
    print_rows(headings, map(_knob_cells, found.knobs))


def _trial_cells(row: TrialView, keys: list[str]) -> tuple[str, ...]:
    record = row.record
    return (
        str(row.number),
        str(_settings(record["settings"])),
        f"{record['fidelity']}, {row.state}",
        _metrics(record["metrics"], keys),
        _chance(record["sla_probability"]),
        record["reason"],
    )


def _front_cells(point: FrontPoint, keys: list[str]) -> tuple[str, ...]:
    return (
        str(point.trial),
        str(point.num_devices),
        str(_settings(point.settings)),
        _metrics(point.metrics, keys),
        _chance(point.sla_probability),
        point.fidelity,
    )


def _knob_cells(knob: KnobView) -> tuple[str, ...]:
    from policies.numbers import short

    levels = (f"{level.value}: {short(level.latency_over_bound)}" for level in knob.levels)
    return knob.knob, f"{knob.share:.0%}", ", ".join(levels)


def _settings(document: Json) -> Settings:
    from api.documents.policy import settings_in

    return settings_in(document)


def _metrics(found: Mapping[str, Json], keys: list[str]) -> str:
    """Those of ``keys`` that are known."""
    from policies.numbers import short

    return ", ".join(f"{key} {short(found[key]['value'])}" for key in keys if key in found) or "-"


def _chance(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
