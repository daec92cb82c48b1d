"""Query parameters that a route does not know: with ``?dryrun=true`` ignored, what was only to be
asked about would be changed."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import Request
from fastapi.dependencies.models import Dependant

from engine.spec.names import did_you_mean


def unknown_parameters(request: Request) -> dict[str, str]:
    """What to say of each parameter that the request's route does not know, by its name."""
    known = sorted(_known(request.scope["route"].dependant))
    rest = f"; known here: {', '.join(known) or 'none'}"
    return {
        name: f"unknown parameter {name!r}{did_you_mean(name, known)}{rest}"
        for name in request.query_params
        if name not in known
    }


def _known(dependant: Dependant) -> Iterator[str]:
    yield from (parameter.alias for parameter in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _known(inner)
