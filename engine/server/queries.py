"""Query parameters that a route does not know: with ``?dryrun=true`` ignored, what was only to be
asked about would be changed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from fastapi import Request
from fastapi.dependencies.models import Dependant

from engine.spec.names import did_you_mean

# A URL has room for thousands, and finding what each was meant to be would take long.
MOST_TOLD = 10


def unknown_parameters(request: Request) -> dict[str, str]:
    """What to say of each parameter that the request's route does not know, by its name; of the
    first ten."""
    known = sorted(_known(request.scope["route"].dependant))
    rest = f"; known here: {', '.join(known) or 'none'}"
    unknown = (name for name in request.query_params if name not in known)
    return {
        name: f"unknown parameter {name!r}{did_you_mean(name, known)}{rest}"
        for name in islice(unknown, MOST_TOLD)
    }


def _known(dependant: Dependant) -> Iterator[str]:
    yield from (parameter.alias for parameter in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _known(inner)
