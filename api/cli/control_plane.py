"""The control plane that commands speak with: its address, its key, a client of it, its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from api.cli.answers import USUAL_S, answering, open_client
from api.cli.common import fail, print_json, print_lines
from api.cli.engine_options import JsonOption, is_http_url
from api.cli.key_options import CONTROL_KEY_VARIABLE, key_option
from api.cli.tables import print_rows
from engine.spec.names import did_you_mean

if TYPE_CHECKING:
    from api.clients.client import Client
    from api.schemas.base import View
    from api.schemas.serving import EngineView

ViewT = TypeVar("ViewT", bound="View")
SERVICE = "http://127.0.0.1:8700"
SERVICE_VARIABLE = "GEARSHIFT_SERVICE"
AWAY = f"; does 'gearshift serve' run there? Another address: --service, or {SERVICE_VARIABLE}"
# A page of a list has no more rows.
MOST_ROWS = 500
NewestOption = Annotated[
    int, typer.Option(min=1, max=MOST_ROWS, metavar="N", help="So many, the newest.")
]
EngineArgument = Annotated[
    str, typer.Argument(metavar="ID|NAME", help="The engine: eng_..., or its name.")
]
EngineOption = Annotated[
    str | None, typer.Option(metavar="ID|NAME", help="Of this engine only: eng_..., or its name.")
]


@dataclass(frozen=True, kw_only=True)
class ControlPlane:
    """The control plane that a command asks, and how the answer is told."""

    service: Annotated[
        str, typer.Option(metavar="URL", envvar=SERVICE_VARIABLE, help="The control plane.")
    ] = SERVICE
    service_key: Annotated[
        str | None, key_option(CONTROL_KEY_VARIABLE, "The control plane's key.")
    ] = None
    as_json: JsonOption = False

    @contextmanager
    def client(self, *, timeout_s: float = USUAL_S) -> Iterator[Client]:
        """A client; ends with one line where the service refuses or cannot be reached."""
        from tuner.load.urls import full_url

        if not is_http_url(full_url(self.service)):
            fail(f"--service {self.service!r}: write it as in {SERVICE}")
        if self.service_key is None:
            fail(no_key(self.service))
        with (
            answering(self.service, way_out=AWAY),
            open_client(self.service, self.service_key, timeout_s=timeout_s) as client,
        ):
            yield client

    def tell(self, found: ViewT, lines: Callable[[ViewT], list[str]]) -> None:
        """Print an answer as JSON, or the ``lines`` made of it."""
        if self.as_json:
            print_json(found.to_json())
        else:
            print_lines(lines(found))

    def tell_rows(
        self,
        name: str,
        found: Sequence[ViewT],
        headings: Sequence[str],
        cells: Callable[[ViewT], Sequence[str]],
    ) -> None:
        """Print a list as JSON under ``name``, or as a table."""
        if self.as_json:
            print_json({name: [row.to_json() for row in found]})
        else:
            print_rows(headings, map(cells, found))


def no_key(service: str) -> str:
    """That the control plane wants a key, and where there is one."""
    return (
        f"the control plane ({service}) needs a key: put it into GEARSHIFT_CONTROL_KEY; on its "
        "machine 'gearshift keys create NAME --scope read' (or tune, apply, admin) makes one"
    )


def find_engine(client: Client, named: str) -> EngineView:
    """The engine of this id or name. Ends where there is none."""
    if named.startswith("eng_"):
        return client.get_engine(named)
    engines = {found.name: found for found in client.list_engines()}
    if named not in engines:
        known = ", ".join(engines) or "none"
        fail(f"no engine is called {named!r}{did_you_mean(named, engines)}; there are: {known}")
    return engines[named]


def find_engine_id(client: Client, named: str) -> str:
    """The id of the engine named. Ends where there is none of that name."""
    return named if named.startswith("eng_") else find_engine(client, named).id
