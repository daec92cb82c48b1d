"""``gearshift workload upload``, ``list`` and ``delete``: traces that the control plane keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.common import fail, log, print_json, print_line
from api.cli.control_plane import ControlPlane
from api.cli.grouped import grouped
from api.cli.tables import minute

if TYPE_CHECKING:
    from api.schemas.workloads import WorkloadView

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As 'workload list' has it: wl_...")]
# The service reads a long trace before it answers.
UPLOAD_S = 300.0


@grouped(help_order="trace service service_key name form")
def upload(
    trace: Annotated[
        Path, typer.Argument(metavar="FILE", help="Trace, CSV or JSON lines, of a known format.")
    ],
    plane: ControlPlane,
    name: Annotated[
        str | None, typer.Option(help="What to call it; by default as the file.")
    ] = None,
    form: Annotated[
        str, typer.Option(help="Its format, where the first rows do not tell.")
    ] = "auto",
) -> None:
    """Upload a trace to the control plane, whose tuning jobs may then name it by its id."""
    if not trace.is_file():
        fail(f"{trace}: no such file")
    with plane.client(timeout_s=UPLOAD_S) as client:
        found = client.create_workload(trace, name=name, form=form)
    plane.tell(found, _lines)
    if not plane.as_json:
        log(f"use it as the workload of a tuning job: {found.id}")


@grouped()
def list_uploaded(plane: ControlPlane) -> None:
    """List the traces that the control plane has, newest first."""
    with plane.client() as client:
        found = client.list_workloads()
    plane.tell_rows(
        "workloads",
        found,
        ("id", "name", "form", "requests", "seconds", "uploaded"),
        lambda row: (
            row.id,
            row.name,
            row.form,
            str(row.rows),
            f"{row.span_s:.1f}",
            minute(row.created_at),
        ),
    )


@grouped()
def delete(workload_id: IdArgument, plane: ControlPlane) -> None:
    """Remove a trace that no tuning job names from the control plane."""
    with plane.client() as client:
        client.delete_workload(workload_id)
    if plane.as_json:
        print_json({"removed": workload_id})
    else:
        print_line(f"{workload_id} is removed")


def _lines(found: WorkloadView) -> list[str]:
    rate = "" if found.rate_rps is None else f", {found.rate_rps:.3g} a second"
    return [f"{found.id}: {found.rows} requests in {found.span_s:.1f} s{rate}"]
