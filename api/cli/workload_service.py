"""``gearshift workload upload``, ``list`` and ``delete``: traces that the control plane keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from api.cli.common import fail, log, print_json
from api.cli.control_plane import SERVICE, KeyOption, ServiceOption, open_client
from api.cli.engine_options import JsonOption

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As 'workload list' has it: wl_...")]
LEAST_WIDTH = 120
# A long trace is read before it is answered.
UPLOAD_S = 300.0


def upload(
    trace: Annotated[
        Path, typer.Argument(metavar="FILE", help="Trace, CSV or JSON lines, of a known format.")
    ],
    service: ServiceOption = SERVICE,
    service_key: KeyOption = None,
    name: Annotated[
        str | None, typer.Option(help="What to call it; by default as the file.")
    ] = None,
    form: Annotated[
        str, typer.Option(help="Its format, where the first rows do not tell.")
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Upload a trace to the control plane, whose tuning jobs may then name it by its id."""
    if not trace.is_file():
        fail(f"{trace}: no such file")
    with open_client(service, service_key, timeout_s=UPLOAD_S) as client:
        found = client.create_workload(trace, name=name, form=form)
    if as_json:
        print_json(found.to_json())
        return
    rate = "" if found.rate_rps is None else f", {found.rate_rps:.3g} a second"
    typer.echo(f"{found.id}: {found.rows} requests in {found.span_s:.1f} s{rate}")
    log(f"use it as the workload of a tuning job: {found.id}")


def list_uploaded(
    service: ServiceOption = SERVICE, service_key: KeyOption = None, as_json: JsonOption = False
) -> None:
    """List the traces that the control plane has, newest first."""
    with open_client(service, service_key) as client:
        found = client.list_workloads()
    if as_json:
        print_json({"workloads": [row.to_json() for row in found]})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "name", "form", "requests", "seconds", "uploaded", box=None)
    for row in found:
        size = str(row.rows), f"{row.span_s:.1f}"
        uploaded = row.created_at.isoformat(timespec="minutes")[:16]
        table.add_row(row.id, row.name, row.form, *size, uploaded)
    console = Console()
    console.width = max(console.width, LEAST_WIDTH)
    console.print(table)


def delete(
    workload_id: IdArgument,
    service: ServiceOption = SERVICE,
    service_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a trace that no tuning job names from the control plane."""
    with open_client(service, service_key) as client:
        client.delete_workload(workload_id)
    if as_json:
        print_json({"removed": workload_id})
    else:
        typer.echo(f"{workload_id} is removed")
