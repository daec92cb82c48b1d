"""The control plane, as commands reach it: its address, its key and a client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.answers import answering
from api.cli.common import fail
from api.cli.engine_options import is_http_url

if TYPE_CHECKING:
    from api.clients.client import Client

SERVICE = "http://127.0.0.1:8700"
ServiceOption = Annotated[str, typer.Option(metavar="URL", help="The control plane.")]
KeyOption = Annotated[
    str | None, typer.Option(envvar="GEARSHIFT_CONTROL_KEY", help="The control plane's key.")
]


@contextmanager
def open_client(url: str, key: str | None, *, timeout_s: float = 30.0) -> Iterator[Client]:
    """A client; ends with one line where the service refuses or cannot be reached."""
    from api.clients.client import Client
    from tuner.load.urls import full_url

    if not is_http_url(full_url(url)):
        fail(f"--service {url!r}: write it as in {SERVICE}")
    if key is None:
        fail("--service needs a key: --service-key, or GEARSHIFT_CONTROL_KEY")
    with answering(url), Client(url, key, timeout_s=timeout_s) as client:
        yield client
