"""``gearshift workload upload``, ``list`` and ``delete``: traces that the control plane keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.answers import answering
from api.cli.common import fail, log, print_json
from api.cli.engine_options import JsonOption, is_http_url

if TYPE_CHECKING:
    from api.clients.client import Client

ServiceOption = Annotated[str, typer.Option(metavar="URL", help="The control plane.")]
KeyOption = Annotated[
    str | None, typer.Option(envvar="GEARSHIFT_CONTROL_KEY", help="The control plane's key.")
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As 'workload list' has it: wl_...")]
SERVICE = "http://127.0.0.1:8700"
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
    with _client(service, service_key) as client:
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
    with _client(service, service_key) as client:
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
    with _client(service, service_key) as client:
        client.delete_workload(workload_id)
    if as_json:
        print_json({"removed": workload_id})
    else:
        typer.echo(f"{workload_id} is removed")


@contextmanager
def _client(url: str, key: str | None) -> Iterator[Client]:
    """A client; ends with one line where the service refuses or cannot be reached."""
    from api.clients.client import Client
    from tuner.load.urls import full_url

    if not is_http_url(full_url(url)):
        fail(f"--service {url!r}: write it as in {SERVICE}")
    if key is None:
        fail("--service needs a key: --service-key, or GEARSHIFT_CONTROL_KEY")
    with answering(url), Client(url, key, timeout_s=UPLOAD_S) as client:
        yield client
