"""``/v1/decisions`` and ``/v1/audit``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from api.schemas.access import AuditView, Scope
from api.schemas.serving import DecisionView
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
