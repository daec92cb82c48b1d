"""``gearshift serve``: the control plane with its worker of tuning jobs."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from api.app import create_app
from api.cli.common import print_json
from api.cli.listening import listen
from api.jobs.supervisor import WorkerSupervisor
from api.web.auth import ensure_first_key
from api.web.logs import configure_logs
from api.web.server import Server
from api.web.settings import ServiceSettings, describe_settings
from migrations import runner
from store import Database


def serve(
    host: Annotated[str | None, typer.Option(help="Address, else GEARSHIFT_HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port, 0 = any free one, else GEARSHIFT_PORT.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the address and a first key as one object.")
    ] = False,
) -> None:
    given = {"host": host, "port": port}
    # Only what was given: the rest is the environment's, so no names can be spelled out here.
    settings = ServiceSettings(**{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
    configure_logs(settings.log_level)
    first_key = _prepare_database(settings)
    listener = listen(settings.host, settings.port)
    url = f"http://{settings.host}:{listener.getsockname()[1]}"
    server = Server(create_app(settings))
    worker = WorkerSupervisor(settings) if settings.run_worker else None
    # uvicorn raises a caught signal again when it is done, but the worker must still be ended;
    # and a signal may come before uvicorn listens for it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    _announce(url, first_key, as_json=as_json)
    if worker is not None:
        worker.start()
    try:
        server.run(sockets=[listener])
    finally:
        if worker is not None:
            worker.stop()


serve.__doc__ = f"""Run the control plane: REST, the controller and a worker of tuning jobs.

ServiceSettings come from the environment:

{describe_settings()}
"""


def _prepare_database(settings: ServiceSettings) -> str | None:
    """Bring SQLite up to date, check PostgreSQL; returns the first key when one was made.

    Raises:
        SchemaError: a PostgreSQL schema that is not the newest.
    """
    database = Database(settings.effective_database_url)
    made: list[str] = []
    try:
        database.require_reachable()
        if settings.is_sqlite:
            runner.upgrade(database.engine)
        runner.require_current(database.engine)
        secret = settings.admin_key.get_secret_value() if settings.admin_key else None
        ensure_first_key(database, secret, made.append)
    finally:
        database.close()
    return made[0] if made else None


def _announce(url: str, first_key: str | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"url": url, "admin_key": first_key})
        return
    if first_key is not None:
        typer.echo(f"admin key, shown only now: {first_key}")
    typer.echo(f"serving on {url} (API description at {url}/docs)")
