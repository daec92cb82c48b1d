"""``gearshift recommendations``: what tuning jobs of the control plane recommend."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.control_plane import ControlPlane
from api.cli.grouped import grouped
from api.cli.tables import minute

if TYPE_CHECKING:
    from api.schemas.tuning import RecommendationView

IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="As 'recommendations list' has it: rec_...")
]


@grouped()
def list_recommendations(plane: ControlPlane) -> None:
    """List recommendations, newest first."""
    with plane.client() as client:
        found = client.list_recommendations()
    plane.tell_rows("recommendations", found, ("id", "settings", "SLA", "made"), _cells)


@grouped()
def show(recommendation_id: IdArgument, plane: ControlPlane) -> None:
    """Say what is recommended, why, how its schedule follows the load, and what each plan
    carries."""
    with plane.client() as client:
        found = client.get_recommendation(recommendation_id)
    plane.tell(found, lambda told: _lines(told, plane.service))


def _cells(row: RecommendationView) -> tuple[str, ...]:
    return row.id, _settings(row), row.sla, minute(row.created_at)


def _settings(row: RecommendationView) -> str:
    from api.documents.policy import settings_in

    if not row.recommendation:
        return "none: nothing met the SLA"
    return str(settings_in(row.recommendation["settings"]))


def _lines(found: RecommendationView, service: str) -> list[str]:
    lines = [f"{found.id}: {_settings(found)}", f"  SLA {found.sla}; tuning job {found.job_id}"]
    told = found.recommendation or {}
    if explanation := told.get("explanation"):
        lines.append(f"  {explanation}")
    if (chance := told.get("sla_probability")) is not None:
        lines.append(f"  {told['fidelity']}, P(SLA met) {chance:.2f}")
    if found.schedule:
        lines += [f"  {line}" for line in _bands(found.schedule)]
    if (table := told.get("capacity_table")) is not None:
        lines += [f"  {line}" for line in _carried(table)]
    lines += [f"  warning: {text}" for text in found.warnings]
    if found.recommendation:
        where = f"--service {shlex.quote(service)} --engine eng_..."
        lines.append(f"apply it: gearshift apply {found.id} {where}")
    return lines


def _carried(table: dict[str, Any]) -> list[str]:
    from policies.capacity_table import CapacityTable
    from policies.numbers import counted, short

    return [
        f"{counted(entry.num_devices, 'device')} {_carry(entry.num_devices)} "
        f"{short(entry.rate_rps)} requests/s (low end {short(entry.low_rps)}, {entry.fidelity}): "
        f"{entry.settings}"
        for entry in CapacityTable.from_json(table).entries
    ]


def _carry(devices: int) -> str:
    return "carries" if devices == 1 else "carry"


def _bands(schedule: dict[str, object]) -> list[str]:
    from policies.numbers import short
    from policies.schedule import Schedule

    return [
        f"from {short(band.rate_rps_low)} requests/s: {band.settings}"
        for band in Schedule.from_json(schedule).bands
    ]
