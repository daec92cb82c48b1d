"""``/v1/api-keys``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from api.schemas.access import (
    ApiKeyCreate,
    ApiKeyCreated,
    ApiKeyRotate,
    ApiKeyRotated,
    ApiKeyView,
    Scope,
)
from api.services import keys
from api.web.auth import Caller, require
from api.web.context import AppContext, get_context
from api.web.idempotency import Answer, IdempotencyHeader, answer_once
from api.web.paging import Paging, link_next
from store import UnitOfWork

router = APIRouter(prefix="/v1/api-keys", tags=["api keys"])
Context = Annotated[AppContext, Depends(get_context)]
Admin = Annotated[Caller, require(Scope.ADMIN)]


@router.post(
    "",
    status_code=201,
    operation_id="create_api_key",
    summary="Make an API key",
    response_model=ApiKeyCreated,
)
def create(
    body: ApiKeyCreate,
    request: Request,
    context: Context,
    caller: Admin,
    key: IdempotencyHeader = None,
) -> JSONResponse:
    """Make a key; its secret is in this answer only."""

    def run(uow: UnitOfWork) -> Answer:
        row, secret = keys.create(uow, body, caller=caller)
        answer = ApiKeyView.model_validate(row).to_json()
        headers = {"Location": f"/v1/api-keys/{row.id}"}
        return Answer(status=201, body=answer, headers=headers, secrets={"secret": secret})

    return answer_once(
        context, caller, request, key=key, body=body.model_dump(mode="json"), create=run
    )


@router.get("", operation_id="list_api_keys", summary="List API keys")
def list_page(
    page: Paging, request: Request, response: Response, context: Context, _: Admin
) -> list[ApiKeyView]:
    """Keys without their secrets, in order of creation."""
    with context.database.read() as uow:
        found = uow.keys.list_page(page)
    link_next(request, response, found)
    return [ApiKeyView.model_validate(row) for row in found.items]


@router.delete(
    "/{key_id}", status_code=204, operation_id="revoke_api_key", summary="Revoke an API key"
)
def revoke(key_id: str, context: Context, caller: Admin) -> None:
    """Revoke a key."""
    with context.database.begin() as uow:
        keys.revoke(uow, key_id, caller=caller)


@router.post(
    "/{key_id}:rotate",
    status_code=201,
    operation_id="rotate_api_key",
    summary="Rotate an API key",
    response_model=ApiKeyRotated,
)
def rotate(
    key_id: str,
    body: ApiKeyRotate,
    request: Request,
    context: Context,
    caller: Admin,
    key: IdempotencyHeader = None,
) -> JSONResponse:
    """Make a key of the same name and scopes; its secret is in this answer only.

    The old key opens for `overlap_s` more, so that whoever uses it can change over.
    """

    def run(uow: UnitOfWork) -> Answer:
        row, secret = keys.rotate(uow, key_id, body, caller=caller)
        answer = {**ApiKeyView.model_validate(row).to_json(), "replaces": key_id}
        headers = {"Location": f"/v1/api-keys/{row.id}"}
        return Answer(status=201, body=answer, headers=headers, secrets={"secret": secret})

    return answer_once(
        context, caller, request, key=key, body=body.model_dump(mode="json"), create=run
    )
