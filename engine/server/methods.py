"""Which methods a path knows."""

from __future__ import annotations

import re

from fastapi import Request
from fastapi.routing import iter_route_contexts
from starlette.routing import compile_path

PARAMETER = re.compile(r"{[^}]*}")


def allowed_methods(request: Request) -> list[str]:
    """The methods of all routes of the request's path; the framework names only the first
    route's."""
    path, found = request.scope["path"], set()
    for route in iter_route_contexts(request.app.routes):
        # An id has no colon, though a route for it would take NAME:cancel for one.
        if route.path is None or (":" in PARAMETER.sub("", route.path)) != (":" in path):
            continue
        if compile_path(route.path)[0].match(path):
            found |= set(route.methods or ())
    return sorted(found)
