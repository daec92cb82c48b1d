"""``/v1/decisions``, ``/v1/forecasts`` and ``/v1/audit``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from api.schemas.access import AuditVerdictView, AuditView, Scope
from api.schemas.plain import MAX_COLUMN
from api.schemas.serving import DecisionView, ForecastView
from api.services import audit as audit_trail
from api.services import forecasts
from api.web.auth import Caller, require
from api.web.context import AppContext, get_context
from api.web.paging import NumberedPaging, link_next

router = APIRouter(prefix="/v1", tags=["control"])
Context = Annotated[AppContext, Depends(get_context)]
Reader = Annotated[Caller, require(Scope.READ)]
Admin = Annotated[Caller, require(Scope.ADMIN)]


@router.get("/decisions", operation_id="list_decisions", summary="List the controller's decisions")
def decisions(
    page: NumberedPaging,
    request: Request,
    response: Response,
    context: Context,
    _: Reader,
    engine_id: str | None = None,
) -> list[DecisionView]:
    """What the controller decided and why, newest first."""
    with context.database.read() as uow:
        found = uow.decisions.list_page(page, engine_id=engine_id)
    link_next(request, response, found)
    return [DecisionView.model_validate(row) for row in found.items]


@router.get(
    "/decisions/{decision_id}",
    operation_id="get_decision",
    summary="Read a decision of the controller",
)
def decision(
    decision_id: Annotated[int, Path(ge=1, le=MAX_COLUMN)], context: Context, _: Reader
) -> DecisionView:
    """What was decided and why, what was seen, and what was not done."""
    with context.database.read() as uow:
        return DecisionView.model_validate(uow.decisions.get(decision_id))


@router.get(
    "/forecasts/{engine_id}",
    operation_id="get_forecast",
    summary="Forecast an engine's load",
    responses={409: {}},
)
def forecast(engine_id: str, context: Context, _: Reader) -> ForecastView:
    """The next five minutes, and the peak that the controller keeps capacity for."""
    with context.database.read() as uow:
        return forecasts.tell(uow, engine_id)


@router.get("/audit", operation_id="list_audit", summary="List the audit trail")
def audit(
    page: NumberedPaging,
    request: Request,
    response: Response,
    context: Context,
    _: Admin,
    resource: str | None = None,
) -> list[AuditView]:
    """Who changed what and why, newest first."""
    with context.database.read() as uow:
        found = uow.audit.list_page(page, resource=resource)
    link_next(request, response, found)
    return [AuditView.model_validate(row) for row in found.items]


@router.get("/audit:verify", operation_id="verify_audit", summary="Verify the audit chain")
def verify(
    context: Context,
    _: Admin,
    since: Annotated[
        int, Query(ge=0, le=MAX_COLUMN, description="Begin at this entry, else at the first")
    ] = 0,
    head: Annotated[
        str | None, Query(pattern="^[0-9a-f]{64}$", description="A `last_hash` noted earlier")
    ] = None,
) -> AuditVerdictView:
    """Follow the chain of hashes and name the first entry that breaks it."""
    with context.database.read() as uow:
        return audit_trail.verify(uow, since=since, head=head)
