"""The service's settings and its database, as commands open them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import fail

if TYPE_CHECKING:
    from api.web.settings import ServiceSettings
    from store import Database

DatabaseUrl = Annotated[
    str | None,
    typer.Option(help="Database URL, else GEARSHIFT_DATABASE_URL, else SQLite in the data folder."),
]


def read_settings(**options: Any) -> ServiceSettings:
    """Settings as the environment has them, under the ``options`` that are not None.

    Ends with one line that names the variable or option that cannot be used.
    """
    from pydantic import ValidationError

    from api.web.settings import PREFIX, ServiceSettings

    given = {name: value for name, value in options.items() if value is not None}
    try:
        return ServiceSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        is_option = name in given
        where = f"--{name.replace('_', '-')}" if is_option else f"{PREFIX}{name.upper()}"
        fail(f"{where}={first['input']}: {first['msg'].removeprefix('Value error, ')}")


@contextmanager
def open_database(url: str | None) -> Iterator[Database]:
    """The service's database, reachable and closed at the end.

    Raises:
        StoreError: it cannot be opened.
    """
    from store import Database

    database = Database(read_settings(database_url=url).effective_database_url)
    try:
        database.require_reachable()
        yield database
    finally:
        database.close()


@contextmanager
def open_current(url: str | None) -> Iterator[Database]:
    """The same, of this version's schema.

    Raises:
        StoreError: it cannot be opened, or has another schema.
    """
    from migrations import runner

    with open_database(url) as database:
        runner.require_current(database.engine)
        yield database
