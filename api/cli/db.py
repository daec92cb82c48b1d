"""``gearshift db``: bring the database to the newest schema, or say where it stands."""

from __future__ import annotations

import typer

from api.cli.common import fail, log, print_json
from api.cli.engine_options import JsonOption
from api.cli.service import DatabaseUrl, open_database
from migrations import runner


def upgrade(database_url: DatabaseUrl = None, as_json: JsonOption = False) -> None:
    """Bring the database to the newest schema."""
    with open_database(database_url) as database:
        before = runner.check(database.engine).current
        runner.upgrade(database.engine)
        status = runner.check(database.engine)
    if as_json:
        print_json({"before": before, "current": status.current})
    else:
        typer.echo(f"schema {before or 'empty'} -> {status.current}")


def check(database_url: DatabaseUrl = None, as_json: JsonOption = False) -> None:
    """Say whether the database has the newest schema; exit code 2 when it has not."""
    with open_database(database_url) as database:
        status = runner.check(database.engine)
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
