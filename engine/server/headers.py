"""One header of a request, without reading the others."""

from __future__ import annotations

from starlette.types import Scope


def find_header(scope: Scope, name: bytes) -> str | None:
    """The first value of header ``name`` (in lower case); None if the request has none."""
    for found, value in scope["headers"]:
        if found == name:
            return str(value, "latin-1")
    return None
