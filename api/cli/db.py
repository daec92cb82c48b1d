"""``gearshift db``: bring the database to the newest schema, or say where it stands."""

from __future__ import annotations

from typing import Annotated

import typer

from api.cli.common import fail, log, print_json
from api.web.settings import ServiceSettings
from migrations import runner
from store import Database

DatabaseUrl = Annotated[
    str | None,
    typer.Option(help="Database URL, else GEARSHIFT_DATABASE_URL, else SQLite in the data folder."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def upgrade(database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Bring the database to the newest schema."""
    database = _open(database_url)
    before = runner.check(database.engine).current
    runner.upgrade(database.engine)
    status = runner.check(database.engine)
    database.close()
    if as_json:
        print_json({"before": before, "current": status.current})
    else:
        typer.echo(f"schema {before or 'empty'} -> {status.current}")


def check(database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Say whether the database has the newest schema; exit code 2 when it has not."""
    database = _open(database_url)
    status = runner.check(database.engine)
    database.close()
    if as_json:
        print_json(
            {
                "current": status.current,
                "head": status.head,
                "differences": list(status.differences),
                "is_current": status.is_current,
            }
        )
    for difference in status.differences:
        log(f"differs from the models: {difference}")
    if not status.is_current:
        fail(
            f"the schema is at {status.current or 'nothing'}, the newest is {status.head}; "
            "run 'gearshift db upgrade'"
        )
    if not as_json:
        typer.echo(f"schema {status.current} is the newest")


def _open(database_url: str | None) -> Database:
    settings = (
        ServiceSettings() if database_url is None else ServiceSettings(database_url=database_url)
    )
    database = Database(settings.effective_database_url)
    database.require_reachable()
    return database
