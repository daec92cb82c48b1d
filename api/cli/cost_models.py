"""``gearshift cost-models``: step times that the control plane keeps, and how right they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import fail
from api.cli.control_plane import ControlPlane
from api.cli.grouped import grouped
from api.cli.tables import minute

if TYPE_CHECKING:
    from api.schemas.prediction import CalibrationView
    from api.schemas.tuning import CostModelSummary

IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="As 'cost-models list' has it: cm_...")
]


@grouped()
def upload(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Step model: the file that 'profile' names."),
    ],
    plane: ControlPlane,
) -> None:
    """Give the control plane step times that were measured elsewhere; jobs name them by id."""
    document = _read(file)
    with plane.client() as client:
        plane.tell(client.create_cost_model({"document": document}), _lines)


@grouped()
def list_cost_models(plane: ControlPlane) -> None:
    """List the step models that the control plane has, newest first."""
    with plane.client() as client:
        found = client.list_cost_models()
    plane.tell_rows(
        "cost_models",
        found,
        ("id", "hardware", "made"),
        lambda row: (row.id, row.fingerprint, minute(row.created_at)),
    )


@grouped()
def show(cost_model_id: IdArgument, plane: ControlPlane) -> None:
    """Say what a step model is of; --json: the whole of it."""
    with plane.client() as client:
        plane.tell(client.get_cost_model(cost_model_id), _lines)


@grouped()
def calibration(cost_model_id: IdArgument, plane: ControlPlane) -> None:
    """Say how right a step model was: on steps kept from it, and in live trials of jobs."""
    with plane.client() as client:
        plane.tell(client.get_calibration(cost_model_id), _calibration_lines)


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    except (ValueError, RecursionError):
        fail(f"{file}: no JSON; name a step model")
    if not isinstance(document, dict):
        fail(f"{file}: no JSON object; name a step model")
    return document


def _lines(found: CostModelSummary) -> list[str]:
    return [f"{found.id}: {found.fingerprint}, {minute(found.created_at)} by {found.created_by}"]


def _calibration_lines(found: CalibrationView) -> list[str]:
    held_out = found.held_out or {}
    lines = [found.cost_model_id]
    lines += [f"  {held_out[name]}" for name in ("verdict", "advice") if held_out.get(name)]
    if not found.metrics:
        return [*lines, "  no live trial has run with it"]
    lines.append(f"  {found.num_trials} live trials, measured over predicted:")
    lines += [
        f"  {row.metric}: {row.median_ratio:.2f} (9 of 10 within a factor of {row.p90_off:.2f}); "
        f"{row.inside_interval:.0%} inside the interval of {row.num_trials}"
        for row in found.metrics
    ]
    return lines
