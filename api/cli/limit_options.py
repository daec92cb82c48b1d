"""What an engine's server takes from a client, as options; the service has them as settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from api.cli.common import log
from engine.server.open_files import make_room
from engine.spec.limits import RequestLimits

LIMITS = RequestLimits()


@dataclass(frozen=True, kw_only=True)
class LimitOptions(RequestLimits):
    """Bounds that hold for every client of the server."""

    max_body_bytes: Annotated[
        int,
        typer.Option(
            min=1, max=2**30, envvar="GEARSHIFT_MAX_BODY_BYTES", help="Longer bodies get 413."
        ),
    ] = LIMITS.max_body_bytes
    header_timeout_s: Annotated[
        float,
        typer.Option(
            min=1,
            max=86_400,
            envvar="GEARSHIFT_HEADER_TIMEOUT_S",
            help="Seconds until a connection has sent a request's headers, else it is cut.",
        ),
    ] = LIMITS.header_timeout_s
    keep_alive_s: Annotated[
        float,
        typer.Option(
            min=1,
            max=86_400,
            envvar="GEARSHIFT_KEEP_ALIVE_S",
            help="Seconds that a connection may rest after an answer, else it is closed.",
        ),
    ] = LIMITS.keep_alive_s
    body_timeout_s: Annotated[
        float,
        typer.Option(
            min=1,
            max=86_400,
            envvar="GEARSHIFT_BODY_TIMEOUT_S",
            help="Seconds until a request's body has come, else 408.",
        ),
    ] = LIMITS.body_timeout_s
    max_connections: Annotated[
        int,
        typer.Option(
            min=1,
            max=2**20,
            envvar="GEARSHIFT_MAX_CONNECTIONS",
            help="Beyond these the one idle longest is cut, else a new one gets 503.",
        ),
    ] = LIMITS.max_connections
    rate_per_s: Annotated[
        float,
        typer.Option(
            min=0,
            max=10**6,
            envvar="GEARSHIFT_RATE_PER_S",
            help="Requests per second and key, ten seconds' worth at once, else 429; 0: any.",
        ),
    ] = LIMITS.rate_per_s


def room_for(limits: RequestLimits) -> RequestLimits:
    """``limits`` with as many connections as this process may have open files for; says so where
    they are fewer."""
    found = make_room(limits)
    if found != limits:
        log(
            f"warning: at most {found.max_connections} clients may be connected at once, not "
            f"{limits.max_connections}: this process may have no more files open (ulimit -Hn)"
        )
    return found
