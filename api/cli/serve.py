"""``gearshift serve``: the control plane with its worker of tuning jobs."""

from __future__ import annotations

import gc
import signal
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Annotated

import typer

from api.cli.common import print_json
from api.cli.limit_options import room_for
from api.cli.listening import listen, url_of
from api.cli.service import open_database, read_settings
from api.web.settings import ServiceSettings, describe_settings
from engine.logs import configure_logs


def serve(
    host: Annotated[str | None, typer.Option(help="Address, else GEARSHIFT_HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port, 0 = any free one, else GEARSHIFT_PORT.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the address and a first key as one object.")
    ] = False,
) -> None:
    settings = read_settings(host=host, port=port)
    configure_logs(settings.log_level)
    connections = room_for(settings.limits).max_connections
    settings = settings.model_copy(update={"max_connections": connections})
    # First: a start that fails must not leave a key behind that nobody saw.
    with listen(settings.host, settings.port) as listener:
        announce = partial(_announce, url_of(settings.host, listener), settings, as_json=as_json)
        _serve(settings, listener, announce)


serve.__doc__ = f"""Run the control plane: REST, the controller and a worker of tuning jobs.

ServiceSettings come from the environment:

{describe_settings()}
"""


def _serve(
    settings: ServiceSettings, listener: socket.socket, announce: Callable[[str | None], None]
) -> None:
    """Serve on ``listener`` until a signal; ``announce`` is told the first key when one is made.

    Raises:
        KeyboardInterrupt: the signal was SIGINT; all has ended as it should.
    """
    _prepare_database(settings)
    # The application takes a second to import: a start that is refused shall not wait for it. The
    # collector's rounds would be a seventh of that; once the service runs, it leaves alone what
    # came (Server.startup).
    gc.disable()
    from api.app import create_app
    from api.jobs.supervisor import WorkerSupervisor
    from api.web.server import Server

    gc.freeze()
    gc.enable()
    server = Server(create_app(settings))
    worker = WorkerSupervisor(settings) if settings.run_worker else None
    signals: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        server.stop()

    # uvicorn raises a caught signal again when it is done, but the worker must still be ended;
    # and a signal may come before uvicorn listens for it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    _find_key(settings, announce)
    if worker is not None:
        worker.start()
    try:
        server.run(sockets=[listener])
    finally:
        if worker is not None:
            worker.stop()
    if signal.SIGINT in signals:
        raise KeyboardInterrupt


def _prepare_database(settings: ServiceSettings) -> None:
    """Bring SQLite up to date, check PostgreSQL.

    Raises:
        SchemaError: a PostgreSQL schema that is not the newest.
    """
    from migrations import runner

    with open_database(settings.effective_database_url) as database:
        if settings.is_sqlite:
            runner.upgrade(database.engine)
        runner.require_current(database.engine)


def _find_key(settings: ServiceSettings, announce: Callable[[str | None], None]) -> None:
    """See that there is an admin key; ``announce`` is told it if it is new, else None."""
    from api.web.auth import ensure_first_key

    secret = settings.admin_key.get_secret_value() if settings.admin_key else None
    with open_database(settings.effective_database_url) as database:
        if not ensure_first_key(database, secret, announce):
            announce(None)


def _announce(url: str, settings: ServiceSettings, first_key: str | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"url": url, "admin_key": first_key})
        return
    if first_key is not None:
        typer.echo(f"admin key, shown only now: {first_key}")
    elif settings.admin_key is not None:
        typer.echo("the admin key is that of GEARSHIFT_ADMIN_KEY")
    else:
        typer.echo("keys are as before; a lost one: gearshift keys create NAME --scope admin")
    pages = f"pages at {url}, " if settings.has_dashboard else ""
    typer.echo(f"serving on {url} ({pages}API description at {url}/docs)")
