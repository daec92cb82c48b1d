"""Health and metrics, outside authentication."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST

from api.schemas.base import answer
from api.web.context import AppContext, get_context
from api.web.errors import ApiError
from api.web.readiness import require_writable
from migrations import runner

# What asks without a key.
PATHS = ("/healthz", "/readyz", "/metrics")
router = APIRouter(tags=["health"])
Context = Annotated[AppContext, Depends(get_context)]


@router.get(
    "/healthz",
    operation_id="is_alive",
    summary="Tell whether the process is alive",
    responses=answer({"status": "ok"}),
)
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    operation_id="is_ready",
    summary="Tell whether the service is ready",
    responses={**answer({"status": "ready"}), 503: {"description": "Not ready"}},
)
def readyz(context: Context) -> dict[str, str]:
    """The database can be written and has this version's schema, and its disk has room."""
    try:
        runner.require_current(context.database.engine)
        require_writable(context)
    except Exception as error:
        raise ApiError(503, "not_ready", str(error)) from error
    return {"status": "ready"}


@router.get(
    "/metrics",
    operation_id="get_metrics",
    summary="Read the service's metrics",
    response_class=Response,
)
def metrics(context: Context) -> Response:
    """Prometheus exposition."""
    return Response(context.metrics.render(context.database), media_type=CONTENT_TYPE_LATEST)
